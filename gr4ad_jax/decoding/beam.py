"""Beam search over the trie: lazy layers once a request, late layers per beam, one context for all beams.

Scores are those of the unconstrained softmax, copy path included: a prefix's copied mass is the attention on the slots
whose ads agree with it, so prefix probabilities add up and the search is exact (method.md §2.4).
"""

import flax.struct
import jax
import jax.numpy as jnp

from gr4ad_jax.decoding.trie import Trie
from gr4ad_jax.models.gr4ad import GR4AD
from gr4ad_jax.models.history_copy import mix


@flax.struct.dataclass
class Beams:
  """Ranked UA-SIDs of B requests, best first.

  Attributes:
    leaf_BW: int32 leaf of the index, -1 where the beam is empty.
    logp_BW: log p(y | X), float32.
    value_BW: expected eCPM of the ad given the context, money.
    codes_BWT: int32 UA-SIDs.
    prefix_logp_BWT: log p of every prefix of the UA-SID.
  """

  leaf_BW: jax.Array
  logp_BW: jax.Array
  value_BW: jax.Array
  codes_BWT: jax.Array
  prefix_logp_BWT: jax.Array


def _take(tree, parent_BW):
  """Gathers the beams `parent_BW` along axis 1 of every leaf of a tree."""

  def gather(x):
    return jnp.take_along_axis(x, parent_BW.reshape(*parent_BW.shape, *(1,) * (x.ndim - 2)), axis=1)

  return jax.tree.map(gather, tree)


def _mass_by_code(match_BWS: jax.Array, code_BS: jax.Array, codes: int) -> jax.Array:
  """[B, W, V]: copied mass of each next code of each beam."""
  if match_BWS.shape[1] == 1:  # level 1 has the largest codebook and one beam: no [B, S, V] array
    rows = jnp.arange(len(code_BS))[:, None]
    return jnp.zeros((len(code_BS), codes)).at[rows, code_BS].add(match_BWS[:, 0])[:, None]
  # f32 throughout: a probability's error must stay far below the gaps between beams
  return jnp.einsum("bws,bsv->bwv", match_BWS, jax.nn.one_hot(code_BS, codes), precision="highest")


def beam_search(
  model: GR4AD, params, batch, trie: Trie, bin_value_V: jax.Array, *, widths: tuple[int, ...], value_power: float = 0.0
) -> Beams:
  """The best existing UA-SIDs of each request.

  Args:
    model: the module.
    params: its parameters.
    batch: requests (`RequestBatch`); targets are not read.
    trie: what exists.
    bin_value_V: mean money of each eCPM bin.
    widths: beams kept after each level; a level with fewer prefixes keeps them all.
    value_power: final order by p · E[value]^value_power.

  Returns:
    Beams in final order.
  """
  variables = {"params": params}
  start = model.apply(variables, batch, method="start")
  B, S, T = start.slot_codes_BST.shape
  node_BW, generated_BW = jnp.zeros((B, 1), jnp.int32), jnp.zeros((B, 1), jnp.float32)
  state = {"codes": jnp.zeros((B, 1, 0), jnp.int32), "prefix": jnp.zeros((B, 1, 0)), "match": jnp.ones((B, 1, S))}
  caches, copy, last_BW = None, None, jnp.zeros((B, 1), jnp.int32)
  for level in range(T):
    h_BWD, logits_BWV, caches = model.apply(variables, start, last_BW, level, caches, method="step")
    if level == 0:
      copy = model.apply(variables, start, h_BWD[:, 0], method="copy_path")
      state["match"] *= jnp.exp(copy.log_attention_BS)[:, None]  # mass that still agrees with each beam
    child_BWC, code_BWC, valid_BWC = trie.children(level, node_BW)
    logp_BWV = jax.nn.log_softmax(logits_BWV)
    generated_BWC = generated_BW[..., None] + jnp.take_along_axis(logp_BWV, code_BWC, axis=-1)
    slot_code_BS = start.slot_codes_BST[..., level]
    mass_BWV = _mass_by_code(state["match"], slot_code_BS, logits_BWV.shape[-1])
    total_BWC = mix(copy, generated_BWC, jnp.take_along_axis(mass_BWV, code_BWC, axis=-1))
    total_BWC = jnp.where(valid_BWC, total_BWC, -jnp.inf)
    if level:
      total_BWC = jnp.where(
        jnp.isneginf(state["prefix"][..., -1:]), -jnp.inf, total_BWC
      )  # an empty beam has no children
    W, C = total_BWC.shape[1:]
    logp_BW, flat_BW = jax.lax.top_k(total_BWC.reshape(B, W * C), min(widths[level], W * C))
    state, caches = _take((state, caches), flat_BW // C)

    def pick(x_BWC, flat_BW=flat_BW):
      return jnp.take_along_axis(x_BWC.reshape(B, -1), flat_BW, axis=1)

    node_BW, last_BW, generated_BW = pick(child_BWC), pick(code_BWC), pick(generated_BWC)
    state["match"] *= slot_code_BS[:, None] == last_BW[..., None]  # (B, 1, S) == (B, W, 1)
    state["codes"] = jnp.concatenate([state["codes"], last_BW[..., None]], axis=-1)
    state["prefix"] = jnp.concatenate([state["prefix"], logp_BW[..., None]], axis=-1)
  _, ecpm_BWV, _ = model.apply(variables, start, last_BW, T, caches, method="step")
  value_BW = jax.nn.softmax(ecpm_BWV) @ bin_value_V
  leaf_BW = jnp.where(jnp.isneginf(logp_BW), -1, node_BW)
  logp_BW = model.apply(variables, start, logp_BW, state["codes"], method="final_logp")
  found = (leaf_BW, logp_BW, value_BW, state["codes"], state["prefix"])
  score_BW = logp_BW + value_power * jnp.log(jnp.maximum(value_BW, 1e-6)) if value_power else logp_BW
  return Beams(*_take(found, jnp.argsort(-score_BW, axis=1, stable=True)))
