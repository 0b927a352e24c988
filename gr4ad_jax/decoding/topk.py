"""The k best candidates over all beams: by one plain top k, or with a pre-cut, always exact
(docs/design/method.md §4).

A pre-cut looks at groups of candidates first. `beams`: each beam keeps its own k best, as in the
paper. `blocks`: of short blocks, those with the k greatest maxima are kept; no other block can hold
one of the k best.
"""

import jax
import jax.numpy as jnp

BLOCK = 16  # candidates


def choose(precut: str, candidates: int, k: int) -> str:
  """The method that `--precut` means for a shape: 'off', 'blocks' or 'beams'.

  On a CPU, of 131,072 candidates with k = 256: plain .17 ms, blocks .12 ms, beams 6 ms; of 262,144
  with k = 512: .43, .29 and 27 ms (2 cores, `benchmark --suite=decode` measures it again). A TPU
  has an operation for the plain one that reads the candidates once and sorts none; blocks would be
  two sorts (as compiled for v5e). On CUDA the plain one sorts all candidates where k is large;
  blocks sort a sixteenth of them, and then 16 · k. No accelerator has timed either.
  """
  if precut != "auto":
    return precut
  return "blocks" if jax.default_backend() != "tpu" and candidates >= 4 * BLOCK * k else "off"


def top_k(x_BWC: jax.Array, k: int, method: str) -> tuple[jax.Array, jax.Array]:
  """The k greatest of W·C values a request, greatest first.

  Args:
    x_BWC: values.
    k: at most W·C.
    method: of `choose`; it changes the time, and which of equal values comes first, nothing else.

  Returns:
    Values and flat positions in W·C, each [B, k].
  """
  B, W, C = x_BWC.shape
  flat = x_BWC.reshape(B, W * C)
  if method == "beams" and k < W * C:
    # No beam has more than k of the k best, so k of each are enough.
    kept = min(k, C)
    value_BWK, column_BWK = jax.lax.top_k(x_BWC, kept)
    # Position in (W · kept) -> beam and place in it -> position in (W · C).
    value, at = jax.lax.top_k(value_BWK.reshape(B, W * kept), k)
    return value, at // kept * C + jnp.take_along_axis(column_BWK.reshape(B, W * kept), at, axis=1)
  # Rounded up: the last block is padded.
  blocks = -(-W * C // BLOCK)
  if method == "blocks" and k < blocks:
    padded = jnp.pad(flat, ((0, 0), (0, blocks * BLOCK - W * C)), constant_values=-jnp.inf).reshape(
      B, blocks, BLOCK
    )
    # The k best lie in the k blocks of the greatest maxima: none of a block that is left out is
    # greater than any of these k maxima.
    _, block_BK = jax.lax.top_k(padded.max(-1), k)
    kept = jnp.take_along_axis(padded, block_BK[..., None], axis=1).reshape(B, k * BLOCK)
    value, at = jax.lax.top_k(kept, k)
    position = jnp.take_along_axis(block_BK, at // BLOCK, axis=1) * BLOCK + at % BLOCK
    # Padding is chosen among equals of -inf alone, and then stands past the last place.
    return value, jnp.minimum(position, W * C - 1)
  # W·C may be no more than k · BLOCK; then nothing can be cut off beforehand.
  return jax.lax.top_k(flat, k)


def merge_top_k(value_BK: jax.Array, at_BK: jax.Array, extra_BP: jax.Array, offset: int, k: int):
  """The k greatest of what `top_k` found and P more candidates, which stand at `offset` and after.

  Returns:
    Values and positions, each [B, k].
  """
  # Extra candidates have the numbers from `offset` on: (P,) -> (B, P).
  at_BP = jnp.broadcast_to(offset + jnp.arange(extra_BP.shape[1]), extra_BP.shape)
  value, at = jax.lax.top_k(jnp.concatenate([value_BK, extra_BP], axis=1), k)
  return value, jnp.take_along_axis(jnp.concatenate([at_BK, at_BP], axis=1), at, axis=1)
