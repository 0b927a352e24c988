"""Swin Transformer: attention in windows that move by half a window every other block.

Source: Liu et al., "Swin Transformer", ICCV 2021. Maps whose sides are no multiple of the window
are padded, as in the dense-prediction variants; padded cells are zeros after the norm and take part
in attention, so weights of those variants give the same values here.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax.btdnet.layers import (
  MLP,
  NEG,
  Conv,
  LayerNorm,
  SelfAttention,
  StochasticDepth,
  coordinates,
)
from gr4ad_jax.models.layers import Linear
from gr4ad_jax.models.remat import rematerialized


@dataclasses.dataclass(frozen=True)
class SwinSize:
  """A Swin's shape.

  Attributes:
    width: channels (C) of the first stage; each later one has twice those before.
    depths: blocks a stage.
    heads: heads a stage.
    window: rows and columns of a window.
    drop_path: stochastic depth of the last block; it grows evenly from 0 at the first.
    stem: "patch", one product a patch of 4 × 4; or "conv", two convolutions of stride 2, which
      learn from few images.
    coordinates: add a learned map of each cell's place to the patches.
  """

  width: int
  depths: tuple[int, ...]
  heads: tuple[int, ...]
  window: int
  drop_path: float = 0.0
  stem: str = "patch"
  coordinates: bool = False


def window_partition(x_BHWC: jax.Array, rows: int, cols: int) -> jax.Array:
  """Cuts maps into windows: [B·nH·nW, rows·cols, C], windows and cells row by row."""
  B, H, W, C = x_BHWC.shape
  # (B, nH, rows, nW, cols, C) -> (B, nH, nW, rows, cols, C): the cells of a window come together.
  x = x_BHWC.reshape(B, H // rows, rows, W // cols, cols, C)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, rows * cols, C)


def window_merge(x: jax.Array, rows: int, cols: int, height: int, width: int) -> jax.Array:
  """Undoes `window_partition`: [B, height, width, C]."""
  C = x.shape[-1]
  # (B, nH, nW, rows, cols, C) -> (B, nH, rows, nW, cols, C): a row of cells runs
  # through all windows.
  x = x.reshape(-1, height // rows, width // cols, rows, cols, C)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height, width, C)


def relative_index(rows: int, cols: int) -> np.ndarray:
  """Row of the bias table for each pair of a window's cells: [rows·cols, rows·cols] int.

  The table has (2 rows - 1)(2 cols - 1) rows, in order of the offset of rows, then of columns.
  """
  # Offsets run from -(rows - 1) to rows - 1, and are moved up to begin at 0.
  y, x = (z.ravel() for z in np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij"))
  down = y[:, None] - y[None] + rows - 1
  right = x[:, None] - x[None] + cols - 1
  return down * (2 * cols - 1) + right


def shift_groups(height: int, width: int, rows: int, cols: int, shift: tuple[int, int]):
  """Which cells of a shifted map stood together: [windows, rows·cols] numbers of regions.

  After the shift a window may hold cells from opposite edges of the map. Cells attend to each other
  only within a region. An axis whose shift is 0 has one region.
  """

  # An axis, once shifted, has three regions: what stands before the last window; the part of that
  # window that stood there before; and what came round from the other edge.
  def regions(size, window, step):
    if not step:
      return np.zeros(size, int)
    place = np.arange(size)
    return (place >= size - window).astype(int) + (place >= size - step)

  # (height, 1) + (width,): each pair of a row's and a column's region has a number of its own.
  numbers = 3 * regions(height, rows, shift[0])[:, None] + regions(width, cols, shift[1])
  cut = numbers.reshape(height // rows, rows, width // cols, cols)
  return cut.transpose(0, 2, 1, 3).reshape(-1, rows * cols)


def window_and_shift(size: int, window: int, shifted: bool) -> tuple[int, int]:
  """Window and shift along an axis of `size` cells: one no longer than a window is one window."""
  if size <= window:
    return size, 0
  return window, window // 2 if shifted else 0


class WindowAttention(nn.Module):
  """Self-attention within windows of a map, with a learned bias by relative place.

  Attributes:
    heads: heads (H).
    window: rows and columns of a window.
    shifted: windows are moved by half their size.
  """

  heads: int
  window: int
  shifted: bool

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    B, H, W, C = x_BHWC.shape
    rows, down = window_and_shift(H, self.window, self.shifted)
    cols, right = window_and_shift(W, self.window, self.shifted)
    # Padded before it is shifted, below and right, as the published variants do.
    x = jnp.pad(x_BHWC, ((0, 0), (0, -H % rows), (0, -W % cols), (0, 0)))
    height, width = x.shape[1:3]
    # What leaves at the top comes in at the bottom. `apart` below keeps both from
    # seeing each other.
    x = jnp.roll(x, (-down, -right), axis=(1, 2))
    bias = self._bias(rows, cols)
    if down or right:
      groups = shift_groups(height, width, rows, cols, (down, right))
      apart = np.where(groups[:, :, None] == groups[:, None], 0.0, NEG).astype(np.float32)
      # (1, H, Q, K) + (windows, 1, Q, K), then once for each image
      bias = jnp.tile(bias + apart[:, None], (B, 1, 1, 1))
    # Windows of all images are one batch axis; what is padded is cut off again at the end.
    windows = window_partition(x, rows, cols)
    windows = SelfAttention(self.heads, name="attention")(windows, bias)
    x = window_merge(windows, rows, cols, height, width)
    return jnp.roll(x, (down, right), axis=(1, 2))[:, :H, :W]

  def _bias(self, rows: int, cols: int) -> jax.Array:
    """[1, H, rows·cols, rows·cols] float32."""
    table = self.param(
      "bias_table",
      # One vector of all heads, since vectors have no weight decay (`training/state.py`).
      nn.with_logical_partitioning(nn.initializers.truncated_normal(0.02), (None,)),
      ((2 * rows - 1) * (2 * cols - 1) * self.heads,),
    ).reshape(-1, self.heads)
    index = relative_index(rows, cols)
    # Each pair of cells looks its offset up, (Q·K, H); heads go to the front, (1, H, Q, K).
    bias_QKH = jnp.take(table, index.ravel(), axis=0).reshape(*index.shape, self.heads)
    return bias_QKH.transpose(2, 0, 1)[None]


class SwinBlock(nn.Module):
  """x + attention(LN x), then x + MLP(LN x).

  Attributes:
    heads, window, shifted: as of `WindowAttention`.
    drop_path: stochastic depth of both branches.
  """

  heads: int
  window: int
  shifted: bool
  drop_path: float

  @nn.compact
  def __call__(self, x_BHWC: jax.Array, train: bool) -> jax.Array:
    y = LayerNorm(name="norm_before")(x_BHWC)
    y = WindowAttention(self.heads, self.window, self.shifted, name="windows")(y)
    x = x_BHWC + StochasticDepth(self.drop_path)(y, train)
    # Four times as wide inside, as published.
    y = MLP(4 * x.shape[-1], name="mlp")(LayerNorm(name="norm_after")(x))
    return x + StochasticDepth(self.drop_path)(y, train)


def merge_patches(x_BHWC: jax.Array) -> jax.Array:
  """Four neighbours side by side: [B, H/2, W/2, 4C].

  Their order is upper left, lower left, upper right, lower right, that of the published weights. A
  side of odd length gets a row or column of zeros.
  """
  x = jnp.pad(x_BHWC, ((0, 0), (0, x_BHWC.shape[1] % 2), (0, x_BHWC.shape[2] % 2), (0, 0)))
  # Every second row and column, from each of the four beginnings.
  corners = [x[:, down::2, right::2] for right in (0, 1) for down in (0, 1)]
  return jnp.concatenate(corners, axis=-1)


class PatchMerging(nn.Module):
  """Half as many rows and columns, twice as many channels."""

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    x = LayerNorm(name="norm")(merge_patches(x_BHWC))
    return Linear(2 * x_BHWC.shape[-1], ("embed", "mlp"), name="reduction")(x)


class Stem(nn.Module):
  """Pixels to the first stage's cells, one for 4 × 4 pixels.

  Attributes:
    size: of the Swin.
    dtype: that all later maps have.
  """

  size: SwinSize
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, image_BHW3: jax.Array) -> jax.Array:
    x = image_BHW3.astype(self.dtype)
    width = self.size.width
    if self.size.stem == "conv":
      x = nn.relu(LayerNorm(name="norm_0")(Conv(width // 2, 3, 2, name="conv_0")(x)))
      x = Conv(width, 3, 2, name="conv_1")(x)
    else:
      # A side that is no multiple of 4 is padded below and right.
      x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % 4), (0, -x.shape[2] % 4), (0, 0)))
      x = Conv(width, 4, 4, bias=True, padding="VALID", name="projection")(x)
    x = LayerNorm(name="norm")(x)
    if self.size.coordinates:
      place = jnp.asarray(coordinates(*x.shape[1:3]), self.dtype)
      x = x + Linear(width, (None, "embed"), name="place")(place)[None]
    return x


class Stage(nn.Module):
  """The blocks of one stage.

  Attributes:
    size: of the Swin.
    number: of the stage, from 0.
    remat: what is kept of a block for the backward pass, a name of `remat.POLICIES`.
  """

  size: SwinSize
  number: int
  remat: str = "none"

  @nn.compact
  def __call__(self, x_BHWC: jax.Array, train: bool) -> jax.Array:
    size = self.size
    number = self.number
    # Argument 2 of a block's call is `train`, a Python bool that remat must not trace.
    block = rematerialized(SwinBlock, self.remat, (2,))
    # The rate grows over the blocks of all stages, so it needs the number of those before.
    first = sum(size.depths[:number])
    last = max(1, sum(size.depths) - 1)
    for i in range(size.depths[number]):
      rate = size.drop_path * (first + i) / last
      made = block(size.heads[number], size.window, bool(i % 2), rate, name=f"block_{i}")
      x_BHWC = made(x_BHWC, train)
    return x_BHWC
