"""History copy: a second way to an ad, which takes it straight from a slot of the context.

p(y | X) = (1 - g) Π_t p(s_t | s_<t, X) + g Σ_j a_j 1[slot j has the UA-SID y], with a gate g and an
attention a over the slots (docs/design/method.md §2.4). All of it is kept as logarithms.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from gr4ad_jax.models.layers import NEG, Linear, product, relu


@flax.struct.dataclass
class Copy:
  """The copy distribution of each request, float32.

  Attributes:
    log_gate_B: log g. It is `layers.NEG` where the path is off or no slot can be copied: g is 0.
    log_rest_B: log(1 - g).
    log_attention_BS: log a_j of each slot; NEG where a slot cannot be copied.
  """

  log_gate_B: jax.Array
  log_rest_B: jax.Array
  log_attention_BS: jax.Array


class HistoryCopy(nn.Module):
  """Gate and attention, from the state of the first level: once a request."""

  @nn.compact
  def __call__(self, first_BD: jax.Array, slots_BSD: jax.Array, mask_BS: jax.Array) -> Copy:
    """Scores each slot by v · relu(W_s x_j + W_q h_1) + W_d h_1 · x_j / √D.

    Args:
      first_BD: h_1, the state of the first level, which has seen no code.
      slots_BSD: x_j, the states of the slots.
      mask_BS: bool, slots that may be copied.
    """
    D = slots_BSD.shape[-1]
    query = Linear(D, bias=True, name="query")(first_BD)
    hidden = relu(Linear(D, name="slot")(slots_BSD) + query[:, None])
    dot_BD = Linear(D, name="dot")(first_BD)
    # Two terms: what a slot and the state have in common, and what a hidden layer makes of both.
    # Both are float32, for the softmax below.
    crossed = product("bd,bsd->bs", dot_BD, slots_BSD)
    added = Linear(1, ("mlp", None), name="score", out_dtype=jnp.float32)(hidden)[..., 0]
    score_BS = jnp.where(mask_BS, added + crossed / jnp.sqrt(D).astype(jnp.float32), NEG)
    # Where no slot may be copied, all scores are equal and the softmax is even: so mask it again.
    log_attention = jnp.where(mask_BS, jax.nn.log_softmax(score_BS), NEG)
    gate = Linear(1, ("embed", None), bias=True, name="gate", out_dtype=jnp.float32)(first_BD)[
      ..., 0
    ]
    # log σ(-x) is log(1 - σ(x)) without the difference, which would round to log 0 for a large x.
    some = mask_BS.any(-1)
    log_gate = jnp.where(some, jax.nn.log_sigmoid(gate), NEG)
    log_rest = jnp.where(some, jax.nn.log_sigmoid(-gate), 0.0)
    return Copy(log_gate, log_rest, log_attention)


class ValueReader(nn.Module):
  """Adds what the slots of an ad say of its value to the state that has generated the ad."""

  @nn.compact
  def __call__(self, h_BMD: jax.Array, slots_BSD: jax.Array, match_BMS: jax.Array) -> jax.Array:
    """Returns the states with what was read added, [B, M, D].

    Args:
      h_BMD: states after the whole UA-SIDs.
      slots_BSD: states of the slots.
      match_BMS: bool, which slots carry a sequence's UA-SID. Where none does, zeros are read.
    """
    D = slots_BSD.shape[-1]
    dtype = slots_BSD.dtype
    # The mean of the slots that match; the maximum keeps 0 / 0 away where none does.
    share_BMS = match_BMS / jnp.maximum(match_BMS.sum(-1, keepdims=True), 1)
    read_BMD = product("bms,bsd->bmd", share_BMS.astype(dtype), slots_BSD).astype(dtype)
    hidden = relu(Linear(D, bias=True, name="state")(h_BMD) + Linear(D, name="slot")(read_BMD))
    return h_BMD + Linear(D, ("mlp", "embed"), name="out")(hidden)


def no_copy(mask_BS: jax.Array) -> Copy:
  """The copy path switched off: g is 0. Of the mask only the shape is read."""
  never = jnp.full(mask_BS.shape, NEG, jnp.float32)
  return Copy(never[:, 0], jnp.zeros_like(never[:, 0]), never)


def sequence_match(slot_codes_BST: jax.Array, codes_BMT: jax.Array) -> jax.Array:
  """Whether slot s carries the whole UA-SID of sequence m: [B, M, S] bool."""
  # (B, M, 1, T) == (B, 1, S, T), and all T codes must agree.
  return (codes_BMT[:, :, None] == slot_codes_BST[:, None]).all(-1)


def mix(copy: Copy, generated_logp: jax.Array, matched_mass: jax.Array) -> jax.Array:
  """log[(1 - g) p_generated + g p_copied], of sequences or of prefixes: [B, …].

  Args:
    copy: the request's copy distribution.
    generated_logp: [B, …] log-probability under the decoder.
    matched_mass: [B, …] sum of a_j over the slots that agree with the sequence or prefix.
  """
  # (B,) -> (B, 1, …, 1), to stand against all sequences of a request.
  shape = (-1,) + (1,) * (generated_logp.ndim - 1)
  # The double where: the outer one chooses NEG at no mass. Alone it would give NaN gradients, as
  # log(0) has an infinite gradient there, and 0 · inf is NaN. So the inner one gives log a 1.
  copied = jnp.where(matched_mass > 0, jnp.log(jnp.where(matched_mass > 0, matched_mass, 1.0)), NEG)
  return jnp.logaddexp(
    copy.log_rest_B.reshape(shape) + generated_logp, copy.log_gate_B.reshape(shape) + copied
  )
