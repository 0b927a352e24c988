"""From the stages' outputs to a mask: one stream, or T-BTD's two.

T-BTD, "target-background twin-stream decoder", is rebuilt from the abstract of arXiv:2502.08486:
only that foreground and background are predicted jointly is published. Each stream is held back
where the other one is sure. The gates pass no gradient, so each level's heads have a loss of their
own (`objectives/segmentation.py`).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from gr4ad_jax.btdnet.layers import Conv, LayerNorm, depth_to_space, resize
from gr4ad_jax.models.layers import Linear

BACKGROUND, TARGET = 0, 1  # places of the last axis of logits
NAMES = ("background", "target")

# Fresh logits of background and target. Their softmax has 1.8 % of the target, about its share of
# an image. From even ones the first steps would move biases alone, by gradients far above all later
# ones; and Adam, whose steps shrink with past gradients, would be slow for hundreds of steps.
# Source of the idea: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, section 3.3.
PRIOR = (2.0, -2.0)

# The same of two streams. Each has a loss of its own, so each expects small targets by itself.
STREAM_PRIOR = (3.0, -3.0)


def start_at(*logits: float) -> nn.initializers.Initializer:
  """Biases that are these logits, over and over."""

  def init(key, shape, dtype=jnp.float32):
    del key
    return jnp.tile(jnp.asarray(logits, dtype), shape[0] // len(logits))

  return init


class Level(nn.Module):
  """Up to the shallower map's size, both side by side, two of (convolution 3 × 3, norm, ReLU).

  Attributes:
    width: channels that come out.
  """

  width: int

  @nn.compact
  def __call__(self, x_BHWC: jax.Array, shallow_BHWC: jax.Array) -> jax.Array:
    x = resize(x_BHWC, *shallow_BHWC.shape[1:3])
    x = jnp.concatenate([x, shallow_BHWC], axis=-1)
    for i in range(2):
      x = nn.relu(LayerNorm(name=f"norm_{i}")(Conv(self.width, name=f"conv_{i}")(x)))
    return x


class Head(nn.Module):
  """Logits of pixels, float32: bilinear from the map's own, or each cell's pixels one by one.

  Attributes:
    start: fresh logits of a pixel.
    subpixel: a cell has 4 × 4 logits of its own, which draws targets of a few pixels.
  """

  start: tuple[float, ...]
  subpixel: bool

  @nn.compact
  def __call__(self, x_BHWC: jax.Array, height: int, width: int) -> jax.Array:
    many = 16 if self.subpixel else 1
    features = many * len(self.start)
    init = start_at(*self.start)
    logits = Linear(features, ("embed", None), True, jnp.float32, init)(x_BHWC)
    # An image whose sides are no multiple of 4 has cells that reach past it: they are cut off.
    if self.subpixel:
      return depth_to_space(logits, 4)[:, :height, :width]
    return resize(logits, height, width)


def hold_back(x_BHWC: jax.Array, other_logit_BHW1: jax.Array) -> jax.Array:
  """x (1 - sigmoid(other)), with the factor divided by its largest of the map; without gradient.

  The division is ours. The background is sure nearly everywhere, long before any target is found.
  A target's stream that is multiplied by a few hundredths learns a few hundredths as fast.
  """
  # sigmoid(-z) is 1 - sigmoid(z), without the difference of two numbers near 1.
  gate = jax.nn.sigmoid(-other_logit_BHW1)
  gate = jax.lax.stop_gradient(gate / gate.max(axis=(1, 2), keepdims=True))
  return x_BHWC * gate.astype(x_BHWC.dtype)


class Decoder(nn.Module):
  """One or two streams over the stages' outputs.

  Attributes:
    kind: "single", the base's; "shared", two streams whose levels share weights; "twin", T-BTD.
    width: channels of every level.
    subpixel: as of `Head`.
  """

  kind: str
  width: int
  subpixel: bool

  @nn.compact
  def __call__(self, maps: list[jax.Array], height: int, width: int):
    """Decodes.

    Args:
      maps: the stages' outputs [B, H, W, C], shallowest first; two or more.
      height: rows of the image.
      width: columns of the image.

    Returns:
      Logits [B, height, width, 2] of background and target, and a tuple of each level's, [B, h, w,
      2], deepest first, empty where there is one stream.
    """
    # From the deepest map on, each level doubles the rows and columns.
    deep, *others = reversed(maps)
    if self.kind == "single":
      x = deep
      for i, shallow in enumerate(others):
        x = Level(self.width, name=f"level_{i}")(x, shallow)
      return Head(PRIOR, self.subpixel, name="head")(x, height, width), ()
    streams = [deep, deep]
    # Both streams begin at the same map; their levels tell them apart.
    levels = []
    for i, shallow in enumerate(others):
      streams = self._level(i, streams, shallow)
      logits = [
        Linear(1, ("embed", None), True, jnp.float32, start_at(start), name=f"{name}_gate_{i}")(x)
        for name, start, x in zip(NAMES, STREAM_PRIOR, streams, strict=True)
      ]
      # Both gates are of the streams before either was held back. 1 - own is the other stream.
      streams = [hold_back(streams[own], logits[1 - own]) for own in (BACKGROUND, TARGET)]
      levels.append(jnp.concatenate(logits, axis=-1))
    heads = [
      Head((start,), self.subpixel, name=f"{name}_head")(x, height, width)
      for name, start, x in zip(NAMES, STREAM_PRIOR, streams, strict=True)
    ]
    # (B, H, W, 1) twice -> (B, H, W, 2), in the order of the streams.
    return jnp.concatenate(heads, axis=-1), tuple(levels)

  def _level(self, i: int, streams: list[jax.Array], shallow: jax.Array) -> list[jax.Array]:
    """Both streams after level i: by one level for both ("shared"), or by one each."""
    if self.kind == "shared":
      level = Level(self.width, name=f"level_{i}")
      return [level(x, shallow) for x in streams]
    return [
      Level(self.width, name=f"{name}_level_{i}")(x, shallow)
      for name, x in zip(NAMES, streams, strict=True)
    ]
