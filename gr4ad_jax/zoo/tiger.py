"""TIGER: a T5-style encoder-decoder from the codes of the history to the codes of the next ad.

Rajput et al., "Recommender Systems with Generative Retrieval", NeurIPS 2023. The buckets of
relative positions are those of T5: Raffel et al., "Exploring the Limits of Transfer Learning with a
Unified Text-to-Text Transformer", JMLR 2020.

The paper's token of the hashed user is left out: all that it could say of a user of the test split
is who that is. Here X are the tokens that the encoder reads: a start, and T codes for each ad of
the history.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax.config import Config, ModelConfig
from gr4ad_jax.features.batches import HISTORY, RequestBatch
from gr4ad_jax.models import knobs
from gr4ad_jax.models.layers import NEG, Dropout, Linear, RMSNorm, attend, product
from gr4ad_jax.models.outputs import Outputs, compute_dtype, next_code_logp
from gr4ad_jax.models.remat import rematerialized

# Of T5: buckets of both directions together, and the distance from which all share the last.
BUCKETS = 32
FARTHEST = 128


@flax.struct.dataclass
class TigerStart:
  """What a request computes once, for all of its sequences.

  Attributes:
    keys: of the encoder's tokens, one array [B, X, H, d] for each decoder layer.
    values: likewise.
    mask_BX: bool, which tokens are real. The start always is.
    slot_codes_BST: UA-SIDs of the slots. The search asks for them.
  """

  keys: tuple[jax.Array, ...]
  values: tuple[jax.Array, ...]
  mask_BX: jax.Array
  slot_codes_BST: jax.Array


def position_buckets(length: int) -> np.ndarray:
  """Buckets of the distance from query (axis 0) to key (axis 1): [X, X] int32, from 0.

  Each direction has half of the buckets. Of these, half are for one near distance each, and the
  others for far distances by their logarithm. The last also has all that is farther.
  """
  distance = np.arange(length)[None] - np.arange(length)[:, None]
  half = BUCKETS // 2
  exact = half // 2
  away = np.abs(distance)
  # The maximum keeps log 0 away; a distance of 0 takes the exact bucket below.
  far = exact + (
    np.log(np.maximum(away, 1) / exact) / np.log(FARTHEST / exact) * (half - exact)
  ).astype(np.int64)
  return ((distance > 0) * half + np.where(away < exact, away, np.minimum(far, half - 1))).astype(
    np.int32
  )


class EncoderLayer(nn.Module):
  """Self-attention among all tokens with a relative bias, then a ReLU feed-forward.

  Attributes:
    config: model settings.
  """

  config: ModelConfig

  @nn.compact
  def __call__(
    self, x_BXD: jax.Array, bias_HXX: jax.Array, mask_BX: jax.Array, train: bool
  ) -> jax.Array:
    """The states of the X tokens after the layer; `bias_HXX` has the query in axis 1."""
    c = self.config
    B, X, D = x_BXD.shape
    drop = Dropout(c.dropout, deterministic=not train)
    qkv = Linear(3 * D, name="qkv")(RMSNorm(name="attention_norm")(x_BXD)).reshape(
      B, X, 3, c.heads, -1
    )
    q = qkv[:, :, 0]
    k = qkv[:, :, 1]
    v = qkv[:, :, 2]
    logits = product("bxhd,byhd->bhxy", q, k) / np.sqrt(D // c.heads)
    # (B, 1, 1, X) hides keys, (1, H, X, X) is the same bias for all requests. It is added before
    # the mask, which must have the last word.
    logits = jnp.where(mask_BX[:, None, None], logits + bias_HXX[None], NEG)
    weights = jax.nn.softmax(logits).astype(v.dtype)
    read = jnp.einsum("bhxy,byhd->bxhd", weights, v).reshape(B, X, D)
    x_BXD += drop(Linear(D, ("mlp", "embed"), name="attention_out")(read))
    return x_BXD + feed_forward(c, RMSNorm(name="ffn_norm")(x_BXD), drop)


class DecoderLayer(nn.Module):
  """Causal self-attention over levels, cross-attention to the encoder, ReLU feed-forward.

  Attributes:
    config: model settings.
  """

  config: ModelConfig

  @nn.compact
  def __call__(self, h_BMTD, keys_BXHd, values_BXHd, mask_BX, train: bool, cache=None):
    """States [B, M, T, D] and the extended cache, as `lazy_decoder.DecoderBlock`."""
    c = self.config
    B, M, T, D = h_BMTD.shape
    drop = Dropout(c.dropout, deterministic=not train)
    qkv = Linear(3 * D, name="self_qkv")(RMSNorm(name="self_norm")(h_BMTD)).reshape(
      B, M, T, 3, c.heads, -1
    )
    q = qkv[..., 0, :, :]
    k = qkv[..., 1, :, :]
    v = qkv[..., 2, :, :]
    if cache is not None:
      k, v = (jnp.concatenate([old, new], axis=2) for old, new in zip(cache, (k, v), strict=True))
    # As in `lazy_decoder.DecoderBlock`: the T queries stand at the end of all levels so far, each
    # sequence is a row of its own here, and a query to the one encoder below.
    levels = k.shape[2]
    causal = jnp.arange(levels - T, levels)[:, None] >= jnp.arange(levels)
    flat = [x.reshape(B * M, x.shape[2], *x.shape[3:]) for x in (q, k, v)]
    read = attend(*flat, causal[None]).reshape(B, M, T, D)
    h_BMTD += drop(Linear(D, ("mlp", "embed"), name="self_out")(read))
    query = Linear(D, name="cross_q")(RMSNorm(name="cross_norm")(h_BMTD)).reshape(
      B, M * T, c.heads, -1
    )
    read = attend(query, keys_BXHd, values_BXHd, mask_BX[:, None]).reshape(B, M, T, D)
    h_BMTD += drop(Linear(D, ("mlp", "embed"), name="cross_out")(read))
    return h_BMTD + feed_forward(c, RMSNorm(name="ffn_norm")(h_BMTD), drop), (k, v)


def feed_forward(config: ModelConfig, x: jax.Array, drop: Dropout) -> jax.Array:
  """The feed-forward of T5: W_o relu(W_i x), with dropout after both."""
  hidden = nn.relu(Linear(config.ffn_multiple * config.width, name="ffn_in")(x))
  return drop(Linear(config.width, ("mlp", "embed"), name="ffn_out")(drop(hidden)))


class Tiger(nn.Module):
  """TIGER over UA-SIDs; the methods that search and VSL call are those of `GR4AD`.

  Attributes:
    config: model settings. Encoder and decoder have `layers` layers each. Nothing is copied or
      biased.
    codebooks: number of codes of each level.
    remat: what is kept of a layer for the backward pass, a name of `remat.POLICIES`.
  """

  config: ModelConfig
  codebooks: tuple[int, ...]
  remat: str = "none"
  predicts_value: ClassVar[bool] = False
  learns_lists: ClassVar[bool] = False
  reads: ClassVar[frozenset[str]] = (
    knobs.BEAMS
    | knobs.WEIGHTS
    | {"layers", "width", "heads", "ffn_multiple", "dropout", "compute_dtype", "remat"}
  )

  @classmethod
  def build(cls, config: Config, num_ads: int) -> "Tiger":
    """The module of a config; the number of ads does not shape it."""
    del num_ads
    plain = dataclasses.replace(config.model, copy="off", history_bias=False)
    return cls(plain, config.sid.codebooks, config.training.remat)

  def setup(self):
    c = self.config
    self.dtype = compute_dtype(c)
    init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("vocab", "embed"))
    self.tables = [
      self.param(f"codes_{t}", init, (v, c.width)) for t, v in enumerate(self.codebooks)
    ]
    starts = nn.with_logical_partitioning(nn.initializers.normal(1.0), (None, "embed"))
    self.bos = self.param("bos", starts, (2, c.width))  # of the encoder, of the decoder
    axes = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, None))
    self.relative = self.param("relative", axes, (BUCKETS, c.heads))
    # The numbers are that of `train` in the layers' calls, a Python bool that remat must not trace.
    encoder = rematerialized(EncoderLayer, self.remat, (4,))
    decoder = rematerialized(DecoderLayer, self.remat, (5,))
    self.encoder = [encoder(c, name=f"encoder_{i}") for i in range(c.layers)]
    self.decoder = [decoder(c, name=f"decoder_{i}") for i in range(c.layers)]
    self.cross = [Linear(2 * c.width, name=f"cross_kv_{i}") for i in range(c.layers)]
    self.encoder_norm = RMSNorm()
    self.decoder_norm = RMSNorm()
    self.heads = [
      Linear(v, ("embed", "mlp"), out_dtype=jnp.float32, name=f"head_{t}")
      for t, v in enumerate(self.codebooks)
    ]
    self.dropout = Dropout(c.dropout)

  def embed(self, level: int, code: jax.Array) -> jax.Array:
    """Embeddings of codes of one level: [..., D] in the compute dtype."""
    return jnp.take(self.tables[level], code, axis=0).astype(self.dtype)

  def start(self, batch: RequestBatch, *, train: bool = False) -> TigerStart:
    """Encodes the start and the T codes of every ad of the history."""
    c = self.config
    T = len(self.codebooks)
    B, S, _ = batch.slot_codes_BST.shape
    # (B, S, T, D) -> (B, S · T, D): the codes of an ad stand together, in the order of the levels.
    tokens = jnp.stack(
      [self.embed(t, batch.slot_codes_BST[..., t]) for t in range(T)], axis=2
    ).reshape(B, S * T, -1)
    # The start is always real, so that a user without a history has something to attend to.
    first = jnp.broadcast_to(self.bos[0].astype(self.dtype), (B, 1, c.width))
    x = self.dropout(jnp.concatenate([first, tokens], axis=1), deterministic=not train)
    real_BX = jnp.repeat(batch.slot_kind_BS == HISTORY, T, axis=1)
    mask_BX = jnp.concatenate([jnp.ones((B, 1), bool), real_BX], axis=1)
    # A lookup by pairs of tokens, (X, X, H) -> (H, X, X). All layers share it, as in T5.
    bias_HXX = self.relative[position_buckets(1 + S * T)].transpose(2, 0, 1)
    for layer in self.encoder:
      x = layer(x, bias_HXX, mask_BX, train)
    x = self.encoder_norm(x)
    # Keys and values of the decoder's layers, made once a request and not once a beam.
    made = [layer(x).reshape(B, x.shape[1], 2, c.heads, -1) for layer in self.cross]
    return TigerStart(
      tuple(kv[:, :, 0] for kv in made),
      tuple(kv[:, :, 1] for kv in made),
      mask_BX,
      batch.slot_codes_BST,
    )

  def _decode(self, start: TigerStart, tokens_BMTD: jax.Array, *, train: bool, caches=None):
    """States [B, M, T, D] of embedded codes, each the one of the level before; and the caches."""
    after = []
    h = self.dropout(tokens_BMTD, deterministic=not train)
    for i, layer in enumerate(self.decoder):
      h, cache = layer(
        h, start.keys[i], start.values[i], start.mask_BX, train, caches[i] if caches else None
      )
      after.append(cache)
    return self.decoder_norm(h), after

  def step(self, start: TigerStart, previous_BM: jax.Array, level: int, caches):
    """One level for M beams a request, as `GR4AD.step`.

    At level T, that of the eCPM, there are only zeros: TIGER predicts no value.
    """
    shape = (*previous_BM.shape, self.config.width)
    if level == len(self.codebooks):
      return jnp.zeros(shape, self.dtype), None, caches
    first = jnp.broadcast_to(self.bos[1].astype(self.dtype), shape)
    token = self.embed(level - 1, previous_BM) if level else first
    h_BM1D, caches = self._decode(start, token[:, :, None], train=False, caches=caches)
    return h_BM1D[:, :, 0], self.heads[level](h_BM1D[:, :, 0]), caches

  def value_logits(self, start: TigerStart, h_BMD: jax.Array, codes_BMT: jax.Array) -> jax.Array:
    """Scores of the eCPM bins: all alike, as TIGER predicts no value."""
    del start, codes_BMT
    return jnp.zeros((*h_BMD.shape[:2], self.config.ecpm_bins), jnp.float32)

  def final_logp(self, start: TigerStart, logp_BM: jax.Array, codes_BMT: jax.Array) -> jax.Array:
    """The score that ranks finished sequences: log p as it is."""
    del start, codes_BMT
    return logp_BM

  def prefix_logp(self, start: TigerStart, logp_BWT: jax.Array, codes_BWT: jax.Array) -> jax.Array:
    """log p of every prefix of finished sequences, as it is."""
    del start, codes_BWT
    return logp_BWT

  def __call__(self, batch: RequestBatch, codes_BMT: jax.Array, *, train: bool = False) -> Outputs:
    """Scores M given sequences a request; values, MTP outputs and copy gate are zeros."""
    B, M, T = codes_BMT.shape
    start = self.start(batch, train=train)
    tokens = [jnp.broadcast_to(self.bos[1].astype(self.dtype), (B, M, self.config.width))]
    # Shifted by one level: the state of level t has seen the codes before it, and not its own.
    tokens += [self.embed(t, codes_BMT[..., t]) for t in range(T - 1)]
    # Unlike GR4AD's, the first level runs for each of the M sequences, as all others do.
    h_BMTD, _ = self._decode(start, jnp.stack(tokens, axis=2), train=train)
    logp = [next_code_logp(self.heads[t](h_BMTD[:, :, t]), codes_BMT[..., t]) for t in range(T)]
    logp_BMT = jnp.stack(logp, axis=-1)
    bins = jnp.zeros((B, M, self.config.ecpm_bins), jnp.float32)
    return Outputs(logp_BMT.sum(-1), logp_BMT, bins, jnp.zeros_like(logp_BMT), jnp.zeros(B))
