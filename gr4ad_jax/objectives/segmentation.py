"""Losses of masks, and of what D-MOLS rebuilds. Pure functions on arrays.

Those of two streams and of D-MOLS belong to BTDNet as rebuilt from the abstract of
arXiv:2502.08486, which publishes no equation. H and W are an image's rows and columns.
"""

import chex
import jax
import jax.numpy as jnp


def binary_cross_entropy(logit_BHW: jax.Array, truth_BHW: jax.Array) -> jax.Array:
  """Mean over pixels of -g log p - (1 - g) log(1 - p), with p = sigmoid(logit).

  Args:
    logit_BHW: any float dtype.
    truth_BHW: g, share of the pixel that is the target, 0 to 1.

  Returns:
    A scalar, nats a pixel.

  Raises:
    AssertionError: ranks or shapes that differ.
  """
  chex.assert_rank([logit_BHW, truth_BHW], 3)
  chex.assert_equal_shape([logit_BHW, truth_BHW])
  logit = logit_BHW.astype(jnp.float32)
  # The same as softplus(x) - g x, without the log of a p that was rounded to 0 or 1.
  return jnp.mean(jax.nn.softplus(logit) - logit * truth_BHW)


def dice_loss(logit_BHW: jax.Array, truth_BHW: jax.Array, smooth: float = 1.0) -> jax.Array:
  """Mean over images of 1 - (2 Σ p g + smooth) / (Σ p + Σ g + smooth), with p = sigmoid(logit).

  Source: Milletari et al., "V-Net", 3DV 2016, with plain sums in place of squares below the line.

  Args:
    logit_BHW: any float dtype.
    truth_BHW: as of `binary_cross_entropy`.
    smooth: pixels that are added above and below the line. So an image without a target is not
      divided by 0, and has no loss where none is predicted.

  Returns:
    A scalar, 0 to 1.

  Raises:
    AssertionError: ranks or shapes that differ.
  """
  chex.assert_rank([logit_BHW, truth_BHW], 3)
  chex.assert_equal_shape([logit_BHW, truth_BHW])
  p = jax.nn.sigmoid(logit_BHW.astype(jnp.float32))
  both_B = (p * truth_BHW).sum((1, 2))
  sizes_B = p.sum((1, 2)) + truth_BHW.sum((1, 2))
  return jnp.mean(1 - (2 * both_B + smooth) / (sizes_B + smooth))


def weighted_cross_entropy(
  logits_BHW2: jax.Array, truth_BHW: jax.Array, weights: tuple[float, float]
) -> jax.Array:
  """Cross-entropy of softmax([background, target]), a weighted mean over pixels.

  Args:
    logits_BHW2: background, target.
    truth_BHW: 0 or 1.
    weights: of a pixel of the background, and of one of the target.

  Returns:
    A scalar, nats a unit of weight.

  Raises:
    AssertionError: an array of another rank.
  """
  chex.assert_rank([logits_BHW2, truth_BHW], [4, 3])
  logp = jax.nn.log_softmax(logits_BHW2.astype(jnp.float32))
  own_BHW = jnp.where(truth_BHW > 0.5, logp[..., 1], logp[..., 0])
  weight_BHW = jnp.where(truth_BHW > 0.5, weights[1], weights[0])
  return -(weight_BHW * own_BHW).sum() / weight_BHW.sum()


def joint_loss(logits_BHW2: jax.Array, truth_BHW: jax.Array, kind: str) -> jax.Array:
  """The loss of the joint prediction, softmax([background, target]).

  Args:
    logits_BHW2: background, target.
    truth_BHW: 0 or 1.
    kind: "peers": .9 cross-entropy, with class weights .9 and 1.1, and .1 Dice, as LAVT and RMSIN
      train; "even": binary cross-entropy and Dice, 1 to 1.
  """
  chex.assert_rank([logits_BHW2, truth_BHW], [4, 3])
  # Its sigmoid is the target's part of the softmax over both.
  logit_BHW = logits_BHW2[..., 1] - logits_BHW2[..., 0]
  dice = dice_loss(logit_BHW, truth_BHW)
  if kind == "peers":
    return 0.9 * weighted_cross_entropy(logits_BHW2, truth_BHW, (0.9, 1.1)) + 0.1 * dice
  return binary_cross_entropy(logit_BHW, truth_BHW) + dice


def stream_loss(logits_BHW2: jax.Array, truth_BHW: jax.Array, background: bool) -> jax.Array:
  """Each stream by itself: cross-entropy and Dice of the target, and of the background's 1 - g.

  Args:
    logits_BHW2: background, target, each a sigmoid's.
    truth_BHW: 0 to 1.
    background: whether the background's stream has its loss.
  """
  chex.assert_rank([logits_BHW2, truth_BHW], [4, 3])

  def of(logit_BHW, goal_BHW):
    return binary_cross_entropy(logit_BHW, goal_BHW) + dice_loss(logit_BHW, goal_BHW)

  loss = of(logits_BHW2[..., 1], truth_BHW)
  return loss + of(logits_BHW2[..., 0], 1 - truth_BHW) if background else loss


def segmentation_loss(
  logits_BHW2: jax.Array,
  levels: tuple[jax.Array, ...],
  truth_BHW: jax.Array,
  *,
  kind: str,
  background: bool,
) -> jax.Array:
  """L_seg: the joint loss, and of two streams half of their own losses.

  Those are the loss of the streams' last output, and the mean of that at the levels before. A level
  has fewer cells than the image has pixels: it is compared with the share of each cell that is the
  target.

  Args:
    logits_BHW2: background, target.
    levels: logits of the levels, [B, h, w, 2]; empty: there is one stream, without a loss of its
      own.
    truth_BHW: 0 or 1; h and w divide H and W.
    kind: as of `joint_loss`.
    background: as of `stream_loss`.
  """
  loss = joint_loss(logits_BHW2, truth_BHW, kind)
  if not levels:
    return loss
  own = stream_loss(logits_BHW2, truth_BHW, background)
  inner = [stream_loss(level, shares(truth_BHW, *level.shape[1:3]), background) for level in levels]
  return loss + 0.5 * (own + sum(inner) / len(inner))


def shares(truth_BHW: jax.Array, height: int, width: int) -> jax.Array:
  """Share of each cell that is the target: [B, height, width] float32.

  Args:
    truth_BHW: 0 or 1 for each pixel.
    height: rows of cells.
    width: columns of cells.

  Raises:
    ValueError: height or width does not divide the truth's.
  """
  B, H, W = truth_BHW.shape
  if H % height or W % width:
    raise ValueError(f"a mask of {H} x {W} pixels cannot be cut into {height} x {width} cells")
  # Axes 2 and 4 are the pixels of a cell, over which the mean is taken.
  cells = truth_BHW.reshape(B, height, H // height, width, W // width)
  return cells.astype(jnp.float32).mean((2, 4))


def text_rebuilding_loss(
  full_BNE: jax.Array, rebuilt_BNE: jax.Array, noun_BN: jax.Array
) -> jax.Array:
  """1 - the mean cosine of full and rebuilt words, over the hidden ones; 0 where none is hidden.

  Args:
    full_BNE: words of the whole sentence. No gradient passes into them.
    rebuilt_BNE: what was made of the sentence with the noun hidden.
    noun_BN: bool, the hidden words.

  Returns:
    A scalar, 0 to 2.

  Raises:
    AssertionError: ranks or shapes that differ.
  """
  chex.assert_rank([full_BNE, rebuilt_BNE, noun_BN], [3, 3, 2])
  chex.assert_equal_shape([full_BNE, rebuilt_BNE])
  # A goal must not move towards what is made of it: both could agree on saying nothing.
  full = jax.lax.stop_gradient(full_BNE.astype(jnp.float32))
  rebuilt = rebuilt_BNE.astype(jnp.float32)
  lengths = jnp.sum(full**2, -1) * jnp.sum(rebuilt**2, -1)
  # One root of the product of both squares. The constant is for words of zeros.
  cosine_BN = jnp.sum(full * rebuilt, -1) * jax.lax.rsqrt(lengths + 1e-12)
  hidden = noun_BN.sum()
  return jnp.where(noun_BN, 1 - cosine_BN, 0.0).sum() / jnp.maximum(hidden, 1)


def map_rebuilding_loss(
  map_BHWC: jax.Array, rebuilt_BHWC: jax.Array, dropped_BHW: jax.Array
) -> jax.Array:
  """Smooth L1 (d²/2 below 1, |d| - 1/2 from there) over the dropped cells; 0 where none is.

  Args:
    map_BHWC: the map before cells were dropped. No gradient passes into it.
    rebuilt_BHWC: the map as rebuilt.
    dropped_BHW: bool, the dropped cells.

  Returns:
    A scalar, the mean over the dropped cells and the channels.

  Raises:
    AssertionError: ranks or shapes that differ.
  """
  chex.assert_rank([map_BHWC, rebuilt_BHWC, dropped_BHW], [4, 4, 3])
  chex.assert_equal_shape([map_BHWC, rebuilt_BHWC])
  goal = jax.lax.stop_gradient(map_BHWC.astype(jnp.float32))
  distance = jnp.abs(rebuilt_BHWC.astype(jnp.float32) - goal)
  each_BHW = jnp.where(distance < 1, distance**2 / 2, distance - 0.5).mean(-1)
  return jnp.where(dropped_BHW, each_BHW, 0.0).sum() / jnp.maximum(dropped_BHW.sum(), 1)
