"""What a model of UA-SIDs reads of a request, keeps of it, and says of its sequences."""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from gr4ad_jax.config import ModelConfig
from gr4ad_jax.models.context import Context


@flax.struct.dataclass
class Start:
  """All that a request computes once, whatever its number of sequences.

  Attributes:
    context: keys, values and slots.
    lazy_B1TD: states m^(K) after the lazy layers, [B, 1, T + 1, D]; the last is the eCPM token's.
    slot_codes_BST: UA-SIDs of the slots.
    history_BS: bool, slots of the user's history.
    copyable_BS: bool, slots that the copy path may name.
    skip_BD: a state of the user that is added to the decoder's, before the heads of all levels.
      None where the model has no such state.
  """

  context: Context
  lazy_B1TD: jax.Array
  slot_codes_BST: jax.Array
  history_BS: jax.Array
  copyable_BS: jax.Array
  skip_BD: jax.Array | None = None


class Read(NamedTuple):
  """What a model reads of a request. `slots_BSD` (embeddings) and `user_BF` (features) make the
  context; `skip_BD` is that of `Start`.
  """

  slots_BSD: jax.Array
  user_BF: jax.Array
  skip_BD: jax.Array | None = None


class Outputs(NamedTuple):
  """What training needs of M sequences a request. All are float32; logarithms are natural.

  Attributes:
    logp_BM: log p(y | X), with copy path and history bias.
    generated_logp_BMT: log p(s_t | s_<t, X) of the decoder alone.
    ecpm_logits_BMV: scores of the V eCPM bins. They are 0 for sequences that were not to be valued.
    mtp_logp_BMT: log p(s_t) by the multi-token-prediction (MTP) branch, which sees no code.
    gate_B: g, the probability that the copy path is taken, 0 to 1.
  """

  logp_BM: jax.Array
  generated_logp_BMT: jax.Array
  ecpm_logits_BMV: jax.Array
  mtp_logp_BMT: jax.Array
  gate_B: jax.Array


def next_code_logp(logits: jax.Array, code_BM: jax.Array) -> jax.Array:
  """Log-probability of one level's codes under the softmax of that level, [B, M] float32.

  The code's own logit is found by a masked sum, not by a gather. Where the columns of a head are
  cut over devices, the gradient of a gather would collect logits and kernel on each of them.

  Args:
    logits: float32 [B, M, V], or [B, V] where all M sequences share them.
    code_BM: codes, from 0 to V - 1.
  """
  # Logits that are shared become (B, 1, V). (V,) == (B, M, 1) -> (B, M, V), with at most one True
  # in each row of V, so the sum below adds that one logit to zeros: it is exact.
  logits_BMV = logits[:, None] if logits.ndim == code_BM.ndim else logits
  own_BMV = jnp.where(jnp.arange(logits_BMV.shape[-1]) == code_BM[..., None], logits_BMV, 0)
  return own_BMV.sum(-1) - jax.nn.logsumexp(logits_BMV, axis=-1)


def compute_dtype(config: ModelConfig):
  """The dtype of matrix products: as asked; 'auto' is bfloat16 where there is an accelerator."""
  if config.compute_dtype != "auto":
    return jnp.dtype(config.compute_dtype)
  return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
