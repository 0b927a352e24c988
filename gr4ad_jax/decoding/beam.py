"""Beam search over the trie: lazy layers once a request, late layers per beam, one context for all
beams.

Scores are those of the unconstrained softmax, copy path included: a prefix's copied mass is the
attention on the slots whose ads agree with it, so prefix probabilities add up and the search is
exact (docs/design/method.md §2.4).
"""

import flax.struct
import jax
import jax.numpy as jnp

from gr4ad_jax.config import SearchConfig
from gr4ad_jax.data.ecpm import LEAST_VALUE
from gr4ad_jax.decoding import topk
from gr4ad_jax.decoding.exclusion import Excluded
from gr4ad_jax.decoding.guide import Guide, Thinned
from gr4ad_jax.decoding.trie import NO_NODE, Children, Trie
from gr4ad_jax.models.gr4ad import GR4AD
from gr4ad_jax.models.history_copy import Copy, mix
from gr4ad_jax.models.outputs import Start

_PLAIN = SearchConfig()


@flax.struct.dataclass
class Beams:
  """Ranked UA-SIDs of B requests, best first.

  Attributes:
    leaf_BW: int32 node of the last depth, -1 where the beam is empty.
    logp_BW: log p(y | X), float32, normalised over all UA-SIDs; -inf where the beam is empty.
    score_BW: what the beams are ordered by, float32: by likelihood log p, up to a constant of the
      request; by eCPM its logarithm; or their blend. -inf where the beam is empty.
    value_BW: expected eCPM of the ad given the context, money.
    spread_BW: standard deviation of the eCPM under the head's distribution, money.
    codes_BWT: int32 UA-SIDs.
    prefix_logp_BWT: log p of every prefix of the UA-SID, normalised; the last is `logp_BW`.
  """

  leaf_BW: jax.Array
  logp_BW: jax.Array
  score_BW: jax.Array
  value_BW: jax.Array
  spread_BW: jax.Array
  codes_BWT: jax.Array
  prefix_logp_BWT: jax.Array


@flax.struct.dataclass
class _State:
  """W beams between two levels; `match_BWS` is the copy attention on slots that still agree with
  each beam.
  """

  node_BW: jax.Array
  last_BW: jax.Array
  generated_BW: jax.Array
  codes_BWT: jax.Array
  prefix_BWT: jax.Array
  match_BWS: jax.Array | None


def _take(tree, parent_BW):
  """Gathers the beams `parent_BW` along axis 1 of every leaf of a tree."""

  def gather(x):
    # The index gets as many axes of length 1 as the leaf has behind its beams: (B, W) -> (B, W, 1,
    # …).
    return jnp.take_along_axis(x, parent_BW.reshape(*parent_BW.shape, *(1,) * (x.ndim - 2)), axis=1)

  return jax.tree.map(gather, tree)


class _Level:
  """The candidates of one level: log p of any (beam, code), by the decoder and by the copy path."""

  def __init__(
    self, state: _State, logits_BWV: jax.Array, copy: Copy | None, slot_code_BS: jax.Array
  ):
    self._state = state
    self._logits = logits_BWV
    self._copy = copy
    # The unconstrained normaliser.
    self._total_BW = state.generated_BW - jax.nn.logsumexp(logits_BWV, axis=-1)
    if copy is not None:
      self._slot_of_BV, self._mass_BWS = _mass_by_slot(
        state.match_BWS, slot_code_BS, logits_BWV.shape[-1]
      )

  def generated(self, beam_BX: jax.Array, code_BX: jax.Array) -> jax.Array:
    """[B, X] log-probability of prefix and code under the decoder alone."""
    V = self._logits.shape[-1]
    # Beams and codes as one axis of W·V cells, so that one gather reads pairs (beam, code).
    flat_BWV = self._logits.reshape(len(self._logits), -1)
    logit_BX = jnp.take_along_axis(flat_BWV, beam_BX * V + code_BX, axis=1)
    return logit_BX + jnp.take_along_axis(self._total_BW, beam_BX, axis=1)

  def total(self, beam_BX: jax.Array, code_BX: jax.Array) -> jax.Array:
    """[B, X] log-probability of prefix and code, copy path included."""
    generated_BX = self.generated(beam_BX, code_BX)
    if self._copy is None:
      return generated_BX
    slots = self._mass_BWS.shape[-1]
    slot_BX = jnp.take_along_axis(self._slot_of_BV, code_BX, axis=1)
    # The same with slots: code -> slot -> mass, as W·S cells.
    flat_BWS = self._mass_BWS.reshape(len(self._mass_BWS), -1)
    mass_BX = jnp.take_along_axis(
      flat_BWS, beam_BX * slots + jnp.minimum(slot_BX, slots - 1), axis=1
    )
    return mix(self._copy, generated_BX, jnp.where(slot_BX < slots, mass_BX, 0.0))


def _mass_by_slot(
  match_BWS: jax.Array, code_BS: jax.Array, codes: int
) -> tuple[jax.Array, jax.Array]:
  """Copied mass of each next code of each beam, kept by slot: S is smaller than V.

  Returns:
    [B, V] the first slot with each code, S where none has it; [B, W, S] mass of that slot's code.
  """
  B, S = code_BS.shape
  rows = jnp.arange(B)[:, None]
  # The lowest slot with each code stands for all of them; S says that no slot has it.
  slot_of_BV = (
    jnp.full((B, codes), S, jnp.int32).at[rows, code_BS].min(jnp.arange(S, dtype=jnp.int32))
  )
  # [B, S, S]: slots with the same code have their masses added up at each of them.
  same_BSS = (code_BS[:, :, None] == code_BS[:, None]).astype(jnp.float32)
  # f32 throughout: a probability's error must stay far below the gaps between beams
  return slot_of_BV, jnp.einsum("bws,bst->bwt", match_BWS, same_BSS, precision="highest")


def _advance(
  level: int, state: _State, here: _Level, trie: Trie, width: int, precut: str, slot_code_BS,
  guide_of, excluded: Excluded | None
):  # fmt: skip
  """The best children of all beams: the next state, and the beams that they come from."""
  found: Children = trie.children(level, state.node_BW, excluded)
  # W beams of C children each become W·C candidates: beam i's are at i·C to i·C + C - 1.
  B, W, C = found.code_BWC.shape
  beam_BX = jnp.broadcast_to(jnp.repeat(jnp.arange(W), C), (B, W * C))
  code_BX = found.code_BWC.reshape(B, -1)
  node_BX = found.node_BWC.reshape(B, -1)
  # A child that does not exist has log p = -inf, and loses against every one that does.
  total_BWC = jnp.where(found.valid_BWC, here.total(beam_BX, code_BX).reshape(B, W, C), -jnp.inf)
  # P overlay entries are ads that came after the last merge of the index.
  extra = 0 if found.code_P is None else len(found.code_P)
  k = min(width, W * C)
  score_BWC = (
    total_BWC if guide_of is None else total_BWC + guide_of(level, state.node_BW, found.node_BWC)
  )
  logp_BW, at_BW = topk.top_k(score_BWC, k, topk.choose(precut, W * C, k))
  # The guide picks beams but is no part of log p, so log p is read again at what was picked.
  if guide_of is not None:
    logp_BW = jnp.take_along_axis(total_BWC.reshape(B, -1), at_BW, axis=1)
  if extra:
    code_BP = jnp.broadcast_to(found.code_P, found.beam_BP.shape)
    # Entries under no beam have beam W. The minimum keeps the gather in range; the next line masks
    # them.
    beam_BP = jnp.minimum(found.beam_BP, W - 1)
    # A code of -1 is an unused entry: it is under no beam, and so masked too.
    total_BP = jnp.where(found.beam_BP < W, here.total(beam_BP, jnp.maximum(code_BP, 0)), -jnp.inf)
    logp_BW, at_BW = topk.merge_top_k(logp_BW, at_BW, total_BP, W * C, min(width, k + extra))
    node_BP = jnp.broadcast_to(trie.overlay_node(level, jnp.arange(extra)), beam_BP.shape)
    beam_BX, code_BX, node_BX = (
      jnp.concatenate(pair, axis=1)
      for pair in ((beam_BX, beam_BP), (code_BX, jnp.maximum(code_BP, 0)), (node_BX, node_BP))
    )
  beam_BW, code_BW, node_BW = (
    jnp.take_along_axis(x, at_BW, axis=1) for x in (beam_BX, code_BX, node_BX)
  )
  # The next level adds to the decoder's own log p, without the copy path: that one is mixed in anew
  # at each level.
  generated_BW = here.generated(beam_BW, code_BW)
  state = _take(state, beam_BW)
  match_BWS = state.match_BWS
  if match_BWS is not None:
    # (B, 1, S) == (B, W, 1) -> (B, W, S): slots whose ad has the beam's code.
    match_BWS = match_BWS * (slot_code_BS[:, None] == code_BW[..., None])
  state = _State(
    # A beam that was filled with a candidate of -inf stands nowhere, and gets no children.
    node_BW=jnp.where(jnp.isneginf(logp_BW), NO_NODE, node_BW),
    last_BW=code_BW,
    generated_BW=generated_BW,
    codes_BWT=jnp.concatenate([state.codes_BWT, code_BW[..., None]], axis=-1),
    prefix_BWT=jnp.concatenate([state.prefix_BWT, logp_BW[..., None]], axis=-1),
    match_BWS=match_BWS,
  )
  return state, beam_BW


def order_scores(logp_BW: jax.Array, value_BW: jax.Array, search: SearchConfig) -> jax.Array:
  """What `--order` sorts a list by, the largest first: [B, W] float32, -inf where there is nothing.

  Args:
    logp_BW: log-likelihood, up to a constant a request; -inf where there is nothing.
    value_BW: expected eCPM, money.
    search: `order` and `value_power`.
  """
  if search.order == "likelihood":
    return logp_BW
  # An ad that is worth nothing goes last, and is still ordered by p.
  # The floor keeps the log finite, so that such ads still have an order among them.
  worth_BW = jnp.log(jnp.maximum(value_BW, LEAST_VALUE))
  if search.order == "blend":
    return logp_BW + search.value_power * worth_BW
  return jnp.where(jnp.isneginf(logp_BW), -jnp.inf, worth_BW)


def _guiding(guide: Guide, thin: Thinned | None, trie: Trie, start: Start):
  """What the guide adds to children: (level, nodes of the beams, children) -> [B, W, C]."""
  # The guide compares in float32: its table is not in the compute dtype.
  state_BD = start.skip_BD.astype(jnp.float32)

  def added(level: int, node_BW: jax.Array, child_BWC: jax.Array) -> jax.Array:
    score_BX = guide.scores(level, state_BD, child_BWC.reshape(len(child_BWC), -1))
    score_BWC = score_BX.reshape(child_BWC.shape)
    if thin is None:
      return score_BWC
    begin = trie.child_start[level]
    return guide.thinned(level, state_BD, node_BW, begin, score_BWC, thin)

  return added


def _ordered(state: _State, caches, likely_BW, value_of, search: SearchConfig):
  """The final order: predicts the eCPM of the beams that are asked for, and sorts by what `--order`
  names.

  `likely_BW` orders by likelihood. The state's prefixes are normalised by now.
  """
  if search.ecpm_beams and search.ecpm_beams < likely_BW.shape[1]:
    best_BW = jax.lax.top_k(likely_BW, search.ecpm_beams)[1]
    # A cut by likelihood first: an eCPM costs one more level of the decoder a beam.
    state, likely_BW, caches = _take((state, likely_BW, caches), best_BW)
  value_BW, spread_BW = value_of(state, caches)
  score_BW = order_scores(likely_BW, value_BW, search)
  leaf_BW = jnp.where(state.node_BW == NO_NODE, -1, state.node_BW)
  found = (
    leaf_BW,
    state.prefix_BWT[..., -1],
    score_BW,
    value_BW,
    spread_BW,
    state.codes_BWT,
    state.prefix_BWT,
  )
  # A stable sort keeps equal scores in the order of likelihood, on every device.
  return Beams(*_take(found, jnp.argsort(-score_BW, axis=1, stable=True)))


def _all_levels(
  model: GR4AD, variables, start: Start, trie: Trie, widths: tuple[int, ...], precut: int, guide_of,
  excluded: Excluded | None,
):  # fmt: skip
  """The beams after the last code, and the decoder's caches for them (see `beam_search`)."""
  B, _, T = start.slot_codes_BST.shape
  copies = model.config.copy != "off"
  # The first level has one beam, the root: all W beams grow out of it.
  first_BW = jnp.zeros((B, 1), jnp.int32)
  empty_BWT = jnp.zeros((B, 1, 0))
  # What each beam may copy is known from the first level's state on.
  state = _State(
    first_BW, first_BW, jnp.zeros((B, 1)), empty_BWT.astype(jnp.int32), empty_BWT, None
  )
  caches = None
  copy = None
  for level in range(T):
    h_BWD, logits_BWV, caches = model.apply(
      variables, start, state.last_BW, level, caches, method="step"
    )
    # The gate and the attention are the same for all levels: they are of the request.
    if level == 0 and copies:
      copy = model.apply(variables, start, h_BWD[:, 0], method="copy_path")
      state = state.replace(match_BWS=jnp.exp(copy.log_attention_BS)[:, None])
    slot_code_BS = start.slot_codes_BST[..., level]
    here = _Level(state, logits_BWV, copy, slot_code_BS)
    state, beam_BW = _advance(
      level, state, here, trie, widths[level], precut, slot_code_BS, guide_of,
      excluded,
    )  # fmt: skip
    # Caches follow their beams: each new beam reads what its own prefix has cached.
    caches = _take(caches, beam_BW)
  return state, caches


def beam_search(
  model: GR4AD, variables, batch, trie: Trie, bin_value_V: jax.Array | None, *,
  widths: tuple[int, ...], search: SearchConfig = _PLAIN, guide: Guide | None = None,
  excluded: Excluded | None = None, thin: Thinned | None = None,
) -> Beams:  # fmt: skip
  """The best existing UA-SIDs of each request.

  Args:
    model: the module.
    variables: its parameters, as `{"params": …}`, with the scales of quantised ones where there are
      any.
    batch: requests (`RequestBatch`); targets are not read.
    trie: what exists.
    bin_value_V: mean money of each eCPM bin; None: no eCPM is predicted, all values and spreads
      are 0.
    widths: beams kept after each level, in place of `search.beams`; a level with fewer prefixes
      keeps them all.
    search: final order, eCPM and pre-cut.
    guide: of a model whose start has a state (`skip_BD`): what an item-level head adds to log p
      where beams are chosen.
    excluded: nodes that a request's search must not enter; None: none, and no work for it.
    thin: beside a guide, what the excluded ads were in the vectors of nodes that are entered.

  Returns:
    Beams in final order; `ecpm_beams` of them, where that is set and smaller.

  Raises:
    ValueError: a guide beside an overlay, whose nodes it does not know.
  """
  if guide is not None and trie.overlay_TQP is not None:
    raise ValueError("a guided search takes no overlay: its nodes have no vectors")
  start: Start = model.apply(variables, batch, method="start")
  guide_of = _guiding(guide, thin, trie, start) if guide is not None else None
  state, caches = _all_levels(
    model, variables, start, trie, widths, search.precut, guide_of, excluded
  )
  likely_BW = model.apply(
    variables, start, state.prefix_BWT[..., -1], state.codes_BWT, method="final_logp"
  )
  prefix_BWT = model.apply(
    variables, start, state.prefix_BWT, state.codes_BWT, method="prefix_logp"
  )
  state = state.replace(prefix_BWT=prefix_BWT)

  def value_of(state, caches):
    # Called for the beams that a pre-cut has left, so that the others cost nothing.
    if bin_value_V is None:
      nothing = jnp.zeros_like(state.generated_BW)
      return nothing, nothing
    T = len(widths)  # the level of the eCPM token, after those of the codes
    h_BWD, _, _ = model.apply(variables, start, state.last_BW, T, caches, method="step")
    ecpm_BWV = model.apply(variables, start, h_BWD, state.codes_BWT, method="value_logits")
    # (B, W, V) @ (V,) -> (B, W): the mean of the bins' values under the predicted distribution, and
    # how far they lie from it.
    chance_BWV = jax.nn.softmax(ecpm_BWV)
    mean_BW = chance_BWV @ bin_value_V
    away_BWV = bin_value_V - mean_BW[..., None]
    return mean_BW, jnp.sqrt((chance_BWV * away_BWV**2).sum(axis=-1))

  return _ordered(state, caches, likely_BW, value_of, search)
