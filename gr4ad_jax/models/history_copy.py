"""History copy: a second way to an ad, straight from the user's own history
(docs/design/method.md §2.4).
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from gr4ad_jax.models.layers import NEG, Linear, product


@flax.struct.dataclass
class Copy:
  """The copy distribution of a request.

  Attributes:
    log_gate_B: log g, the mass of the copy path; -inf-like where it is off or nothing can be
      copied.
    log_rest_B: log(1 - g).
    log_attention_BS: log a_j over slots; NEG where a slot can't be copied.
  """

  log_gate_B: jax.Array
  log_rest_B: jax.Array
  log_attention_BS: jax.Array


class HistoryCopy(nn.Module):
  """Gate and attention from the level-1 state, once a request."""

  @nn.compact
  def __call__(self, first_BD: jax.Array, slots_BSD: jax.Array, mask_BS: jax.Array) -> Copy:
    """Scores every slot by an additive and a multiplicative cross with the level-1 state.

    Args:
      first_BD: state of level 1; it has seen no code.
      slots_BSD: slot states.
      mask_BS: slots that may be copied.
    """
    D = slots_BSD.shape[-1]
    query = Linear(D, bias=True, name="query")(first_BD)
    hidden = nn.relu(Linear(D, name="slot")(slots_BSD) + query[:, None])
    dot_BD = Linear(D, name="dot")(first_BD)
    crossed = product("bd,bsd->bs", dot_BD, slots_BSD)
    added = Linear(1, ("mlp", None), name="score", out_dtype=jnp.float32)(hidden)[..., 0]
    score_BS = jnp.where(mask_BS, added + crossed / jnp.sqrt(D).astype(jnp.float32), NEG)
    log_attention = jnp.where(mask_BS, jax.nn.log_softmax(score_BS), NEG)
    gate = Linear(1, ("embed", None), bias=True, name="gate", out_dtype=jnp.float32)(first_BD)[
      ..., 0
    ]
    some = mask_BS.any(-1)
    log_gate = jnp.where(some, jax.nn.log_sigmoid(gate), NEG)
    log_rest = jnp.where(some, jax.nn.log_sigmoid(-gate), 0.0)
    return Copy(log_gate, log_rest, log_attention)


class ValueReader(nn.Module):
  """What the slots of an ad say of its value, beside the state that has generated it."""

  @nn.compact
  def __call__(self, h_BMD: jax.Array, slots_BSD: jax.Array, match_BMS: jax.Array) -> jax.Array:
    """States with what was read added, [B, M, D].

    Args:
      h_BMD: states after the whole UA-SIDs.
      slots_BSD: slot states.
      match_BMS: which slots carry a sequence's UA-SID; where none does, the reading is that of no
        slot.
    """
    D = slots_BSD.shape[-1]
    dtype = slots_BSD.dtype
    share_BMS = match_BMS / jnp.maximum(match_BMS.sum(-1, keepdims=True), 1)
    read_BMD = product("bms,bsd->bmd", share_BMS.astype(dtype), slots_BSD).astype(dtype)
    hidden = nn.relu(Linear(D, bias=True, name="state")(h_BMD) + Linear(D, name="slot")(read_BMD))
    return h_BMD + Linear(D, ("mlp", "embed"), name="out")(hidden)


def no_copy(mask_BS: jax.Array) -> Copy:
  """The copy path switched off: the model is the paper's."""
  never = jnp.full(mask_BS.shape, NEG, jnp.float32)
  return Copy(never[:, 0], jnp.zeros_like(never[:, 0]), never)


def sequence_match(slot_codes_BST: jax.Array, codes_BMT: jax.Array) -> jax.Array:
  """[B, M, S] bool: does slot s carry the whole UA-SID of sequence m?"""
  return (codes_BMT[:, :, None] == slot_codes_BST[:, None]).all(-1)


def mix(copy: Copy, generated_logp: jax.Array, matched_mass: jax.Array) -> jax.Array:
  """log[(1 - g) p_generated + g p_copied].

  Args:
    copy: the request's copy distribution.
    generated_logp: [B, …] log-probability of a sequence or a prefix under the decoder.
    matched_mass: [B, …] sum of a_j over the slots that agree with it.
  """
  shape = (-1,) + (1,) * (generated_logp.ndim - 1)
  # the double where keeps log's gradient finite at no mass
  copied = jnp.where(matched_mass > 0, jnp.log(jnp.where(matched_mass > 0, matched_mass, 1.0)), NEG)
  return jnp.logaddexp(
    copy.log_rest_B.reshape(shape) + generated_logp, copy.log_gate_B.reshape(shape) + copied
  )
