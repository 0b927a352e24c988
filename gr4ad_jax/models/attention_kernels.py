"""The kernels of `cross_attention`, forward and backward, for CUDA (Triton), TPU (Mosaic) and, as
CUDA's form interpreted, CPU.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu

from gr4ad_jax.models.remat import RECOMPUTED

# Most scores, queries times slots, of a program that takes all queries of a group: 64 KiB in
# float32, and there are a few such arrays.
_MOST_SCORES = 16_384
# Where there are more: queries of a program, and on CUDA the slots of a piece.
_QUERIES = {"tpu": 256, "cuda": 128, "cpu": 128}
_PIECE = 64
_LANES = 128  # a TPU's blocks are of so many columns, or of all


def at_once(queries: int, slots: int) -> bool:
  """Whether a program takes all queries of a group."""
  return _padded(queries) * _padded(slots) <= _MOST_SCORES


def _padded(size: int) -> int:
  """The power of two that a block of Triton's has for a size."""
  return max(16, pl.next_power_of_2(size))


# What a program sees: n groups of heads (one, but on TPU), X queries of each, S slots. A row of an
# array is a query, or a slot, with the columns of all groups side by side.


def _load(ref, rows: int | jax.Array, group: int, d: int) -> jax.Array:
  """The columns of a group, [rows, d]; zeros in rows that fill up a block.

  Args:
    ref: of a block.
    rows: that there are; as many as the block has where it is not known to be filled up.
    group: of those in the block.
    d: columns of a group.
  """
  if isinstance(rows, int) and ref.shape[0] <= rows:
    return ref[:, group * d : (group + 1) * d]
  row = jax.lax.broadcasted_iota(jnp.int32, ref.shape, 0)
  return plgpu.load(ref, mask=row < rows, other=0.0)


def _store(ref, x_Xd: jax.Array, rows: int | jax.Array, group: int):
  """Writes the columns of a group; rows that fill up a block are left out."""
  d = x_Xd.shape[1]
  x_Xd = x_Xd.astype(ref.dtype)
  if isinstance(rows, int) and ref.shape[0] <= rows:
    ref[:, group * d : (group + 1) * d] = x_Xd
  else:
    row = jax.lax.broadcasted_iota(jnp.int32, ref.shape, 0)
    plgpu.store(ref, x_Xd, mask=row < rows)


def _scores(q_Xd, kv_Sd, hidden_ref, slots: int | jax.Array) -> jax.Array:
  """Float32 scores [X, S]: NEG where a slot is hidden, -inf where there is none."""
  if isinstance(slots, int) and hidden_ref.shape[1] <= slots:
    hidden_1S = hidden_ref[...]
  else:
    column = jax.lax.broadcasted_iota(jnp.int32, hidden_ref.shape, 1)
    hidden_1S = plgpu.load(hidden_ref, mask=column < slots, other=-jnp.inf)
  score_XS = _dot(q_Xd, kv_Sd, 1, 1) * (1 / q_Xd.shape[1] ** 0.5)
  # (1, S) -> (X, S). No sum: a query that sees nothing reads all slots alike, as in `attend`.
  return jnp.where(hidden_1S < 0, hidden_1S, score_XS)


def _dot(a, b, of_a: int, of_b: int) -> jax.Array:
  """Product of two matrices over axis `of_a` of one and `of_b` of the other, summed in float32."""
  axes = (((of_a,), (of_b,)), ((), ()))
  return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _softmax(score_XS) -> tuple[jax.Array, jax.Array]:
  """Weights before they are divided, and what divides them, [X, 1]."""
  weight_XS = jnp.exp(score_XS - score_XS.max(axis=1, keepdims=True))
  return weight_XS, weight_XS.sum(axis=1, keepdims=True)


def forward_kernel(q_ref, kv_ref, hidden_ref, read_ref, *, d: int, queries: int, slots: int):
  """What queries read, written to `read_ref`; `queries` and `slots` are those that there are."""
  for group in range(q_ref.shape[1] // d):
    kv_Sd = _load(kv_ref, slots, group, d)
    q_Xd = _load(q_ref, queries, group, d)
    weight_XS, total_X1 = _softmax(_scores(q_Xd, kv_Sd, hidden_ref, slots))
    read_Xd = _dot(weight_XS.astype(kv_Sd.dtype), kv_Sd, 1, 0) / total_X1
    _store(read_ref, read_Xd, queries, group)


def pieces_kernel(q_ref, kv_ref, hidden_ref, read_ref, *, d: int, queries: int, slots: int):
  """`forward_kernel` on some of the queries, with slots in pieces; of one group."""
  left = queries - pl.program_id(2) * q_ref.shape[0]
  q_Xd = _load(q_ref, left, 0, d)

  def add(number, carry):
    top_X1, total_X1, read_Xd = carry
    here = pl.ds(number * _PIECE, _PIECE)
    there = slots - number * _PIECE
    kv_Sd = _load(kv_ref.at[here, :], there, 0, d)
    score_XS = _scores(q_Xd, kv_Sd, hidden_ref.at[:, here], there)
    # What was summed so far is brought under the new maximum. The first one is -inf: exp gives 0.
    # A piece has at least one slot, whose score is finite.
    higher_X1 = jnp.maximum(top_X1, score_XS.max(axis=1, keepdims=True))
    fall_X1 = jnp.exp(top_X1 - higher_X1)
    weight_XS = jnp.exp(score_XS - higher_X1)
    total_X1 = total_X1 * fall_X1 + weight_XS.sum(axis=1, keepdims=True)
    read_Xd = read_Xd * fall_X1 + _dot(weight_XS.astype(kv_Sd.dtype), kv_Sd, 1, 0)
    return higher_X1, total_X1, read_Xd

  column = (q_ref.shape[0], 1)
  begin = (
    jnp.full(column, -jnp.inf, jnp.float32),
    jnp.zeros(column, jnp.float32),
    jnp.zeros(q_ref.shape, jnp.float32),
  )
  _, total_X1, read_Xd = jax.lax.fori_loop(0, -(-slots // _PIECE), add, begin)
  _store(read_ref, read_Xd / total_X1, left, 0)


def backward_kernel(
  q_ref, kv_ref, hidden_ref, dread_ref, later_ref, dq_ref, dkv_ref, *, d: int, queries: int,
  slots: int
):  # fmt: skip
  """Gradients of queries and slots, written to `dq_ref` and `dkv_ref`, of that of what was read.

  What later layers made of the slots' gradient, `later_ref`, is added.
  """
  for group in range(q_ref.shape[1] // d):
    q_Xd = _load(q_ref, queries, group, d)
    dread_Xd = _load(dread_ref, queries, group, d)
    kv_Sd = _load(kv_ref, slots, group, d)
    with jax.named_scope(RECOMPUTED):
      score_XS = _scores(q_Xd, kv_Sd, hidden_ref, slots)
    weight_XS, total_X1 = _softmax(score_XS)
    p_XS = weight_XS / total_X1
    # With o = Σ p v: dp = do · v, and of the softmax ds = p (dp - Σ p dp).
    dp_XS = _dot(dread_Xd, kv_Sd, 1, 1)
    ds_XS = p_XS * (dp_XS - (p_XS * dp_XS).sum(axis=1, keepdims=True)) * (1 / d**0.5)
    ds_XS = ds_XS.astype(kv_Sd.dtype)
    _store(dq_ref, _dot(ds_XS, kv_Sd, 1, 0), queries, group)
    # A slot's gradient as a key, as a value, and of the layers that read it later: `later_ref` and
    # `dkv_ref` are one array. Queries that fill up a block have no gradient, and so add none.
    dkv_Sd = _dot(ds_XS, q_Xd, 0, 0) + _dot(p_XS.astype(kv_Sd.dtype), dread_Xd, 0, 0)
    dkv_Sd += _load(later_ref, slots, group, d).astype(jnp.float32)
    _store(dkv_ref, dkv_Sd, slots, group)


def _groups_a_program(groups: int, d: int) -> int:
  """Groups of heads that a TPU's program takes: the fewest that fill its lanes, else all."""
  fitting = [n for n in range(1, groups) if groups % n == 0 and n * d % _LANES == 0]
  return fitting[0] if fitting else groups


def _call(kernel, platform: str, arrays: tuple, d: int, outputs: str) -> list[jax.Array]:
  """Runs a kernel over requests and groups, and over runs of queries where there are many.

  Args:
    kernel: `forward_kernel` or `backward_kernel`.
    platform: 'tpu', 'cuda' or 'cpu', where it is interpreted in CUDA's form.
    arrays: q [B, X, G · d], kv [B, S, G · d], hidden [B, 1, S]; for the backward pass what is
      known of the gradients, shaped as q and kv are.
    d: width of a head.
    outputs: one letter each: 'q' or 'k', what it is shaped as.
  """
  q_BXC, kv_BSC, _ = arrays[:3]
  B, X, C = q_BXC.shape
  S = kv_BSC.shape[1]
  G = C // d
  # Scores and mean are two products; their gradients are three, and the scores again.
  products = 2 if kernel is forward_kernel else 5
  whole = at_once(X, S)
  on_tpu = platform == "tpu"
  n = _groups_a_program(G, d) if on_tpu else 1
  rows = S if on_tpu else _padded(S)
  fill = X if on_tpu else _padded(X)
  taken = fill if whole else min(fill, _QUERIES[platform])
  if not whole and not on_tpu:
    kernel = pieces_kernel
    rows = pl.cdiv(S, _PIECE) * _PIECE
  of_q = pl.BlockSpec((None, taken, n * d), lambda b, g, x: (b, x, g))
  of_kv = pl.BlockSpec((None, rows, n * d), lambda b, g, x: (b, 0, g))
  of_hidden = pl.BlockSpec((None, 1, rows), lambda b, g, x: (b, 0, 0))
  like = {"q": (q_BXC, of_q), "k": (kv_BSC, of_kv)}
  held = taken * (rows if whole else _PIECE)
  options = {
    "tpu": pltpu.CompilerParams(dimension_semantics=("parallel",) * 3),
    "cuda": plgpu.CompilerParams(num_warps=8 if held > 4096 else 4, num_stages=1),
    "cpu": None,
  }
  shapes = [jax.ShapeDtypeStruct(like[name][0].shape, like[name][0].dtype) for name in outputs]
  moved = sum(x.size * x.dtype.itemsize for x in (*arrays, *shapes))
  cost = pl.CostEstimate(2 * products * B * X * S * C, B * G * X * S, moved)
  return pl.pallas_call(
    # On TPU the last run of queries may reach past the end: no row reads another one's.
    functools.partial(kernel, d=d, queries=taken if on_tpu else X, slots=S),
    out_shape=shapes,
    # Runs of queries go fastest: on TPU they find the slots of their group where they are.
    grid=(B, G // n, pl.cdiv(X, taken)),
    in_specs=[of_q, of_kv, of_hidden, of_q, of_kv][: len(arrays)],
    input_output_aliases={4: 1} if len(arrays) == 5 else {},
    out_specs=[like[name][1] for name in outputs],
    compiler_params=options[platform],
    cost_estimate=cost,
    interpret=platform == "cpu",
    name=kernel.__name__,
  )(*arrays)


def run(kernel, d: int, outputs: str, *arrays) -> list[jax.Array]:
  """`_call` in the form of the platform that the program is lowered for."""

  def of(platform):
    return lambda *arrays: _call(kernel, platform, arrays, d, outputs)

  return jax.lax.platform_dependent(*arrays, tpu=of("tpu"), cuda=of("cuda"), default=of("cpu"))
