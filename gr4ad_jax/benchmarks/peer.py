"""The peer of the decoding benchmark: a T5 of `transformers`, with the beam search of that library.

It is laid out as TIGER's. The encoder reads the context as a sequence of tokens, the decoder writes
a token a level, and each level has tokens of its own. Weights are random: speed does not depend on
them.
"""

import ctypes
import time
from collections.abc import Sequence

import numpy as np

_STEP = 16  # of the feed-forward width
START = 0  # the decoder's first token, and the padding token as well; tokens of codes follow


def token_offsets(codebooks: Sequence[int]) -> np.ndarray:
  """[T + 1] int64: the token of each level's code 0, then the size of the vocabulary."""
  return 1 + np.cumsum([0, *codebooks])


class PrefixTokens:
  """The tokens that may follow a prefix, as a `prefix_allowed_tokens_fn` of `generate`.

  All answers are prepared as tensors, so that a call is a look into a dictionary.

  Args:
    codes_NT: int UA-SIDs that exist. Repeated ones count once.
    codebooks: codes a level. Their product is below 2^63.
  """

  def __init__(self, codes_NT: np.ndarray, codebooks: Sequence[int]):
    torch, _ = _packages()
    offsets = token_offsets(codebooks)
    # Packed prefixes of the depth so far, sorted. At depth 0 there is the root alone.
    prefix_N = np.zeros(1, np.int64)
    self._next: list[dict[int, object]] = []
    self._sizes = [int(size) for size in codebooks]
    self._offsets = offsets.tolist()
    self.first_T = offsets[:-1]
    self.levels = len(codebooks)
    keys_NT = np.zeros((len(codes_NT), len(codebooks) + 1), np.int64)
    for level, size in enumerate(codebooks):
      keys_NT[:, level + 1] = keys_NT[:, level] * size + codes_NT[:, level]
      child_N = np.unique(keys_NT[:, level + 1])
      # The last digit of a packed prefix, in base `size`, is the child's own code.
      tokens = torch.from_numpy(child_N % size + offsets[level])
      # Children are sorted by their packed prefix, so those of one parent stand together: how many
      # each parent has cuts the tokens into its parts.
      lengths = np.bincount(np.searchsorted(prefix_N, child_N // size), minlength=len(prefix_N))
      self._next.append(
        dict(zip(prefix_N.tolist(), torch.split(tokens, lengths.tolist()), strict=True))
      )
      prefix_N = child_N
    # Of a beam that holds no existing prefix: its score is -inf, and stays so.
    self._none = torch.tensor([START])

  def __call__(self, request: int, sentence) -> object:
    """Tokens, as a tensor, that may follow one beam's [1 + level]: START, then a token a level."""
    del request
    key = 0
    for level, token in enumerate(sentence.tolist()[1:]):
      # Packed as the constructor has packed it, by which the dictionary knows it.
      key = key * self._sizes[level] + token - self._offsets[level]
    return self._next[len(sentence) - 1].get(key, self._none)


class T5Decode:
  """Times beam search by `T5ForConditionalGeneration.generate` on requests of random tokens.

  It is made by `t5_decode`.

  Attributes:
    model: the T5.
    parameters: numbers in it.
    context_BS: int64 tokens of the requests.
  """

  def __init__(
    self, model, prefix_tokens: PrefixTokens, context_BS, beams: int, threads: int, share: bool
  ):
    self.model = model
    self.context_BS = context_BS
    self.parameters = sum(p.numel() for p in model.parameters())
    self._prefix_tokens = prefix_tokens
    self._beams = beams
    self._threads = threads
    self._share = share

  def __call__(self) -> float:
    """Seconds that one search of the batch takes. Torch has its number of threads for that time."""
    torch, _ = _packages()
    before = torch.get_num_threads()
    torch.set_num_threads(self._threads)
    try:
      begin = time.perf_counter()
      self._search()
      return time.perf_counter() - begin
    finally:
      torch.set_num_threads(before)

  def decode(self) -> np.ndarray:
    """[B, W, T] int64 UA-SIDs of the batch, best first; -1 where fewer exist than beams."""
    # (B·W, 1 + T) -> (B, W, T), START left out.
    tokens_BWT = self._search().unflatten(0, (-1, self._beams))[..., 1:].numpy()
    codes_BWT = tokens_BWT - self._prefix_tokens.first_T
    for codes_WT in codes_BWT:
      # `generate` fills up with what it has found already: only the first of equal ones counts.
      filled = np.zeros(len(codes_WT), bool)
      filled[np.unique(codes_WT, axis=0, return_index=True)[1]] = True
      codes_WT[~filled | (codes_WT < 0).any(-1)] = -1
    return codes_BWT

  def _search(self):
    """Tokens [B · W, 1 + T], START first, the best of a request first."""
    torch, _ = _packages()
    with torch.inference_mode():
      if not self._share:
        return self._generate(self.context_BS)
      return torch.cat(
        [self._generate(row_1S, **self._prepared(row_1S)) for row_1S in self.context_BS.split(1)]
      )

  def _generate(self, context_BS, **prepared):
    """`generate` with T new tokens, all beams returned, and only prefixes that exist."""
    torch, _ = _packages()
    return self.model.generate(
      context_BS,
      attention_mask=torch.ones_like(context_BS),
      num_beams=self._beams,
      num_return_sequences=self._beams,
      max_new_tokens=self._prefix_tokens.levels,
      do_sample=False,
      early_stopping=True,
      prefix_allowed_tokens_fn=self._prefix_tokens,
      **prepared,
    )

  def _prepared(self, context_1S) -> dict:
    """The encoder's output, and a cache of its keys and values that all beams of the request read.

    Left alone, `generate` repeats the encoder's output for every beam, computes keys and values of
    every copy, and gathers them after each level. All beams of a request read the same ones, so
    views of one copy give the same result. Views cannot be had for several requests at once, so
    each is searched alone.
    """
    _, transformers = _packages()
    encoded = self.model.get_encoder()(context_1S)
    cross = transformers.DynamicCache()
    for block in self.model.decoder.block:
      attention = block.layer[1].EncDecAttention
      layer = transformers.cache_utils.DynamicLayer()
      layer.keys = self._by_beam(attention.k(encoded.last_hidden_state))
      layer.values = self._by_beam(attention.v(encoded.last_hidden_state))
      layer.is_initialized = True
      cross.layers.append(layer)
    cross.reorder_cache = lambda beams: None  # a gather of equal rows
    cache = transformers.EncoderDecoderCache(transformers.DynamicCache(), cross)
    return {"encoder_outputs": encoded, "past_key_values": cache}

  def _by_beam(self, x_1SD):
    """[W, H, S, D / H]: a view of one copy for all beams."""
    return (
      # (1, S, D) -> (1, H, S, D / H) -> (W, H, S, D / H): the last step copies nothing.
      x_1SD.unflatten(-1, (self.model.config.num_heads, -1))
      .transpose(1, 2)
      .expand(self._beams, -1, -1, -1)
    )


def t5_decode(
  codes_NT: np.ndarray,
  codebooks: Sequence[int],
  parameters: int,
  *,
  width: int = 256,
  layers: int = 4,
  batch: int = 1,
  beams: int = 512,
  context: int = 256,
  dtype: str = "float32",
  threads: int = 2,
  share_context: bool = False,
  seed: int = 0,
) -> T5Decode:
  """A timer of the peer, for `timing.interleaved`. Its first call is slower than the rest.

  Args:
    codes_NT: UA-SIDs that exist.
    codebooks: codes a level.
    parameters: numbers that the T5 should have. The width of its feed-forward layers follows.
    width: model width, with as many heads of 64 as fit, and one at least.
    layers: of the encoder, and as many of the decoder. TIGER has 4.
    batch: requests.
    beams: beam width, the same at every level, as `generate` has it.
    context: tokens of a request that the encoder reads.
    dtype: of weights and matmuls, 'float32' or 'bfloat16'.
    threads: of torch while it is timed.
    share_context: read one copy of a request's keys and values for all beams, which `generate` does
      not do by itself.
    seed: of weights and requests.

  Raises:
    ImportError: the extra 'peer' is not installed.
    ValueError: no feed-forward width brings the T5 within 5 % of `parameters`.
  """
  torch, transformers = _packages()
  size = int(token_offsets(codebooks)[-1])
  config = _config(parameters, size, width, layers)
  # In a fork, so that the caller's random numbers stay as they are.
  with torch.random.fork_rng(devices=[]):
    torch.manual_seed(seed)
    model = transformers.T5ForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    context_BS = torch.randint(1, size, (batch, context))
  model = model.to(getattr(torch, dtype)).eval()
  return T5Decode(
    model, PrefixTokens(codes_NT, codebooks), context_BS, beams, threads, share_context
  )


def keep_memory() -> bool:
  """Lets this process keep the memory that it frees, and tells whether it does. Only glibc can.

  A search by `generate` takes gigabytes afresh at every level. Without this, the kernel hands out
  and takes back every page of them each time, and the peer is up to twice as slow. It stays so for
  the life of the process.
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  # Numbers of options, of malloc.h.
  trim_threshold = -1
  mmap_max = -4
  return mallopt is not None and bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, -1))


def _config(parameters: int, vocabulary: int, width: int, layers: int):
  """A T5Config with the feed-forward width that comes nearest to a number of parameters."""
  torch, transformers = _packages()

  def config(ffn: int):
    return transformers.T5Config(
      vocab_size=vocabulary,
      d_model=width,
      num_heads=max(1, width // 64),
      d_kv=min(64, width),
      d_ff=ffn,
      num_layers=layers,
      pad_token_id=START,
      decoder_start_token_id=START,
      # Without a token that ends a sequence, all of them have T codes.
      eos_token_id=None,
    )

  def count(ffn: int) -> int:
    with torch.device("meta"):  # shapes alone
      return sum(
        p.numel() for p in transformers.T5ForConditionalGeneration(config(ffn)).parameters()
      )

  # The number grows linearly with the width, so two counts tell all others.
  least = count(_STEP)
  slope = count(2 * _STEP) - count(_STEP)
  ffn = _STEP * max(1, 1 + round((parameters - least) / slope))
  if abs(count(ffn) - parameters) > 0.05 * parameters:
    raise ValueError(
      f"layers={layers} is not allowed: a T5 of width {width} has {count(ffn):,} parameters or "
      f"more, not {parameters:,}"
    )
  return config(ffn)


def _packages():
  """torch and transformers. Raises ImportError that names the extra."""
  try:
    import torch
    import transformers
  except ImportError as error:
    raise ImportError(f"{error.name} is missing: pip install 'gr4ad_jax[peer]'") from error
  return torch, transformers
