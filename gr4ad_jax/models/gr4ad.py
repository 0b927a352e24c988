"""GR4AD: the whole model, from a batch of requests to log p(y | X) (docs/design/method.md §2).

It puts together what the other files of this room define: what goes in and out, the context, the
LazyAR decoder, one head a level, the heads of training (eCPM and MTP, §3.1), the history copy and
the history bias (§2.4).
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from gr4ad_jax.config import Config, ModelConfig
from gr4ad_jax.features.batches import HISTORY, PADDING, RequestBatch
from gr4ad_jax.models import knobs
from gr4ad_jax.models.context import ContextProcessor
from gr4ad_jax.models.history_bias import biased_logp, biased_prefix_logp, signed_bias
from gr4ad_jax.models.history_copy import (
  Copy,
  HistoryCopy,
  ValueReader,
  mix,
  no_copy,
  sequence_match,
)
from gr4ad_jax.models.lazy_decoder import Cache, LazyDecoder
from gr4ad_jax.models.level_heads import LevelHead, piece_of
from gr4ad_jax.models.outputs import Outputs, Read, Start, compute_dtype
from gr4ad_jax.models.remat import rematerialized

NUM_KINDS = 4  # slot kinds of features/batches.py


def _code_logp(head: LevelHead, h: jax.Array, code_BM: jax.Array) -> jax.Array:
  """`LevelHead.logp` as a function of the head, as rematerialisation wants it."""
  return head.logp(h, code_BM)


class GR4AD(nn.Module):
  """The model over one shape, `[B, M, T]`: M UA-SIDs of T codes for each of B requests.

  Targets, candidates and beams are all sequences of a request, so there is one forward function.

  Attributes:
    config: model settings.
    codebooks: number of codes of each level, length T.
    remat: what is kept for the backward pass of blocks, context, copy path and heads. It is a name
      of `remat.POLICIES`.
    predicts_value: whether it has an eCPM head and an MTP branch. VSL leaves out the terms of those
      that a model lacks.
    learns_lists: whether the list objectives suit it, which is so where its whole loss is VSL on
      sequences.
    reads: knobs that it reads, of `knobs.ALL`.
  """

  config: ModelConfig
  codebooks: tuple[int, ...]
  remat: str = "none"
  predicts_value: ClassVar[bool] = True
  learns_lists: ClassVar[bool] = True
  reads: ClassVar[frozenset[str]] = knobs.ALL - knobs.HEAD - knobs.ENCODER - knobs.BESIDE

  @classmethod
  def build(cls, config: Config, num_ads: int) -> "GR4AD":
    """The module of a config; the number of ads does not shape it."""
    del num_ads
    return cls(config.model, config.sid.codebooks, config.training.remat)

  def make_decoder(self) -> nn.Module:
    """The decoder: `lazy` once a request, then a call for M sequences."""
    return LazyDecoder(self.config, len(self.codebooks) + 1, self.remat)

  def setup(self):
    c = self.config
    self.dtype = compute_dtype(c)
    init = nn.with_logical_partitioning(nn.initializers.normal(0.5), ("vocab", "embed"))
    self.tables = [
      self.param(f"codes_{t}", init, (v, c.width)) for t, v in enumerate(self.codebooks)
    ]
    self.bos = self.param(
      "bos", nn.with_logical_partitioning(nn.initializers.normal(0.5), ("embed",)), (c.width,)
    )
    # Argument 5 of its call is `train`. It chooses a branch in Python, so remat must not trace it.
    self.processor = rematerialized(ContextProcessor, self.remat, (5,))(c, NUM_KINDS)
    self.decoder = self.make_decoder()
    piece = piece_of(c.head_piece)
    self.heads = [LevelHead(v, piece=piece, name=f"head_{t}") for t, v in enumerate(self.codebooks)]
    self.ecpm_head = LevelHead(c.ecpm_bins)
    if c.copy != "off":
      self.copier = rematerialized(HistoryCopy, self.remat)()
      self.value_reader = rematerialized(ValueReader, self.remat)()
    if self.biased:
      self.bias = signed_bias(self)

  @property
  def biased(self) -> bool:
    """Whether log p(y | X) has the signed bias on the history; a subclass may have it elsewhere."""
    return self.config.history_bias

  def start(self, batch: RequestBatch, *, train: bool = False) -> Start:
    """Computes what all sequences of a request share: the context and the lazy layers."""
    read = self.read(batch, train=train)
    context = self.processor(
      read.slots_BSD, batch.slot_kind_BS, batch.slot_features_BSF, read.user_BF, train
    )
    history_BS = batch.slot_kind_BS == HISTORY
    # With --copy=off it is of no effect: `no_copy` reads its shape alone.
    copyable_BS = batch.slot_kind_BS > PADDING if self.config.copy == "context" else history_BS
    lazy_B1TD = self.decoder.lazy(context, train=train)
    return Start(context, lazy_B1TD, batch.slot_codes_BST, history_BS, copyable_BS, read.skip_BD)

  def read(self, batch: RequestBatch, *, train: bool = False) -> Read:
    """The embedded UA-SIDs of the slots, and the user's features. A subclass may read more."""
    del train
    codes = sum(self.embed(t, batch.slot_codes_BST[..., t]) for t in range(len(self.codebooks)))
    return Read(codes, batch.user_features_BF)

  def embed(self, level: int, code: jax.Array) -> jax.Array:
    """Embeddings of codes [...] of one level: [..., D] in the compute dtype."""
    return jnp.take(self.tables[level], code, axis=0).astype(self.dtype)

  def copy_path(self, start: Start, first_BD: jax.Array) -> Copy:
    """The copy distribution of each request, from the state of its first level."""
    if self.config.copy == "off":
      return no_copy(start.copyable_BS)
    return self.copier(first_BD, start.context.slots_BSD, start.copyable_BS)

  def step(self, start: Start, previous_BM: jax.Array, level: int, caches: list[Cache] | None):
    """One level of decoding for M beams a request.

    Args:
      start: the request's shared part.
      previous_BM: codes of the level before. At level 0 only the shape is read.
      level: 0 to T; level T is the eCPM token.
      caches: keys and values of the late layers' self-attention; None at level 0.

    Returns:
      States [B, M, D]; logits of the level [B, M, V], or None at level T, which has no code (see
      `value_logits`); and the caches with this level added.
    """
    if level:
      token = self.embed(level - 1, previous_BM)
    else:
      token = jnp.broadcast_to(self.bos.astype(self.dtype), (*previous_BM.shape, self.config.width))
    # A slice keeps the level's axis, here of length 1; (B, 1, 1, D) then serves all M beams.
    m = start.lazy_B1TD[:, :, level : level + 1]
    h_BM1D, caches = self.decoder(m, token[:, :, None], start.context, train=False, caches=caches)
    h_BMD = h_BM1D[:, :, 0]
    logits = self.heads[level](_skipped(start, h_BMD)) if level < len(self.codebooks) else None
    return h_BMD, logits, caches

  def value_logits(self, start: Start, h_BMD: jax.Array, codes_BMT: jax.Array) -> jax.Array:
    """Scores of the eCPM bins [B, M, V], from the states of level T and the whole UA-SIDs.

    With a copy path the model also reads the slots that carry the very ad that was generated: its
    price, and what this user paid. Attention alone would hardly find them, because a slot's codes
    reach it as a sum of embeddings.
    """
    h_BMD = _skipped(start, h_BMD)
    if self.config.copy != "off":
      match_BMS = sequence_match(start.slot_codes_BST, codes_BMT) & start.copyable_BS[:, None]
      h_BMD = self.value_reader(h_BMD, start.context.slots_BSD, match_BMS)
    return self.ecpm_head(h_BMD)

  def seen(self, start: Start, codes_BMT: jax.Array) -> jax.Array:
    """Whether each UA-SID is one of the user's history, [B, M] bool."""
    return (sequence_match(start.slot_codes_BST, codes_BMT) & start.history_BS[:, None]).any(-1)

  def final_logp(self, start: Start, logp_BM: jax.Array, codes_BMT: jax.Array) -> jax.Array:
    """The score that ranks finished sequences, [B, M]: log p(y | X), plus b for y of the history.

    It is not normalised. The constant that `__call__` takes off is the same for all sequences of a
    request, so it changes no order.
    """
    return logp_BM + self.bias * self.seen(start, codes_BMT) if self.biased else logp_BM

  def prefix_logp(self, start: Start, logp_BWT: jax.Array, codes_BWT: jax.Array) -> jax.Array:
    """log p of every prefix of finished sequences, normalised, with the bias: [B, W, T] float32.

    With a bias the whole history is scored, once a request. `__call__` estimates the history's mass
    on its latest ads instead.

    Args:
      start: the request's shared part.
      logp_BWT: log p of every prefix before the bias.
      codes_BWT: UA-SIDs.
    """
    if not self.biased:
      return logp_BWT
    # The S slots are the M sequences here. Their eCPM is not read, so the least number is valued.
    past_logp_BS = self.score(start, start.slot_codes_BST, 1, train=False).logp_BM
    # An ad that stands in two slots has its mass once.
    past_logp_BS = jnp.where(_distinct(start), past_logp_BS, -jnp.inf)
    return biased_prefix_logp(logp_BWT, codes_BWT, start.slot_codes_BST, past_logp_BS, self.bias)

  def __call__(
    self,
    batch: RequestBatch,
    codes_BMT: jax.Array,
    *,
    train: bool = False,
    valued: int | None = None,
  ) -> Outputs:
    """Scores M given sequences a request: the forward of training, preference learning and ranking.

    Args:
      batch: requests; their targets are not read.
      codes_BMT: UA-SIDs to score.
      train: apply dropout.
      valued: how many sequences, from the first on, have their eCPM scored; None: all.
    """
    start = self.start(batch, train=train)
    M = codes_BMT.shape[1]
    valued = M if valued is None else min(valued, M)
    if self.biased:
      # The latest ads of the history are scored beside the M, for the normaliser Z of the bias.
      # They stand behind, so `valued` leaves them out and [:, :M] cuts them off.
      distinct_BS = _distinct(start)
      past_BH = _latest(distinct_BS, self.config.history_bias_ads)
      # -1, no slot, reads slot 0; `past_BH >= 0` masks it. The codes' axis T is broadcast.
      past_BHT = jnp.take_along_axis(
        start.slot_codes_BST, jnp.maximum(past_BH, 0)[..., None], axis=1
      )
      out = self.score(start, jnp.concatenate([codes_BMT, past_BHT], axis=1), valued, train=train)
      logp_BM = out.logp_BM[:, :M]
      past_logp_BH = out.logp_BM[:, M:]
      size_B = distinct_BS.sum(-1)
      logp_BM = biased_logp(
        logp_BM, self.seen(start, codes_BMT), past_logp_BH, past_BH >= 0, size_B, self.bias
      )
      kept = (x[:, :M] for x in (out.generated_logp_BMT, out.ecpm_logits_BMV, out.mtp_logp_BMT))
      return Outputs(logp_BM, *kept, out.gate_B)
    return self.score(start, codes_BMT, valued, train=train)

  def score(self, start: Start, codes_BMT: jax.Array, valued: int, *, train: bool) -> Outputs:
    """Decoder, heads and copy path on M sequences a request, before the history bias.

    Arguments as of `__call__`, with what `start` returned in place of the batch.
    """
    B, M, T = codes_BMT.shape
    bos_B11D = jnp.broadcast_to(self.bos.astype(self.dtype), (B, 1, 1, self.config.width))
    # The code of level t is what level t + 1 reads: tokens 0 to T - 1 belong to levels 1 to T.
    tokens_BMTD = jnp.stack([self.embed(t, codes_BMT[..., t]) for t in range(T)], axis=2)
    # The first level has seen no code, so a request computes it once for all of its sequences. The
    # free states, of L_MTP (§3.1), have seen none at any level.
    first_BD, later_BMTD, last_BVD, free_B1TD = self.decoder.together(
      start.lazy_B1TD, bos_B11D, tokens_BMTD, valued, start.context, train=train
    )
    states = [first_BD, *(later_BMTD[:, :, t] for t in range(T - 1))]
    free_B1TD = _skipped(start, free_B1TD)
    generated = []
    mtp = []
    # Float32 logits are the largest arrays there are, and a twentieth of the work: no policy keeps
    # them. A head in pieces keeps none by itself.
    dropped = rematerialized(_code_logp, "full" if self.remat != "none" else "none")
    for t in range(T):
      logp_of = _code_logp if self.heads[t].in_pieces else dropped
      # At level 0, and in the MTP branch at every level, one state [B, D] serves all M sequences.
      generated.append(logp_of(self.heads[t], _skipped(start, states[t]), codes_BMT[..., t]))
      mtp.append(logp_of(self.heads[t], free_B1TD[:, 0, t], codes_BMT[..., t]))
    generated_logp_BMT = jnp.stack(generated, axis=-1)
    copy = self.copy_path(start, states[0])
    # Slots that cannot be copied have an attention of exp(-1e9) = 0, so padding may match freely.
    attention = jnp.exp(copy.log_attention_BS)
    match_BMS = sequence_match(start.slot_codes_BST, codes_BMT).astype(jnp.float32)
    # "highest": by default an accelerator may round these probabilities to bfloat16 or TF32.
    matched = jnp.einsum("bs,bms->bm", attention, match_BMS, precision="highest")
    logp_BM = mix(copy, generated_logp_BMT.sum(-1), matched)
    ecpm = self.value_logits(start, last_BVD, codes_BMT[:, :valued])
    ecpm = jnp.pad(ecpm, ((0, 0), (0, M - valued), (0, 0)))
    return Outputs(
      logp_BM, generated_logp_BMT, ecpm, jnp.stack(mtp, axis=-1), jnp.exp(copy.log_gate_B)
    )


def _skipped(start: Start, h: jax.Array) -> jax.Array:
  """The decoder's states [B, ..., D] as the heads read them, with the user's state added."""
  # (B, D) -> (B, 1, …, 1, D), as many axes as the states have.
  return h if start.skip_BD is None else h + start.skip_BD.reshape(len(h), *(1,) * (h.ndim - 2), -1)


def _distinct(start: Start) -> jax.Array:
  """Slots of the history whose UA-SID no later slot of the history carries, [B, S] bool.

  Two ads can share a UA-SID; of such slots the latest stands for all.
  """
  # Row i, column j: slots i and j agree, and j is of the history. Above the diagonal j is later.
  same_BSS = sequence_match(start.slot_codes_BST, start.slot_codes_BST) & start.history_BS[:, None]
  return start.history_BS & ~jnp.triu(same_BSS, k=1).any(-1)


def _latest(history_BS: jax.Array, number: int) -> jax.Array:
  """The last slots where `history_BS` is true, latest first; -1 where there are fewer: int32.

  There are `number` of them, or S where that is less.
  """
  # The history stands in its slots oldest first, so the greatest positions are the latest ads.
  position = jnp.where(history_BS, jnp.arange(history_BS.shape[1]), -1)
  return jax.lax.top_k(position, min(number, history_BS.shape[1]))[0]
