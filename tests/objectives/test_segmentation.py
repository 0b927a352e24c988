"""Losses of masks and of what is rebuilt, against loops."""

import math

import jax
import numpy as np
import pytest

from gr4ad_jax.objectives import segmentation

joint_loss = jax.jit(segmentation.joint_loss, static_argnums=2)
whole_loss = jax.jit(segmentation.segmentation_loss, static_argnames=("kind", "background"))


def _draw(seed, B=3, H=4, W=6):
  rng = np.random.default_rng(seed)
  return rng.normal(0, 2, (B, H, W, 2)), (rng.random((B, H, W)) < 0.3).astype(float)


def _bce(logit, truth):
  total = 0
  for z, g in zip(logit.ravel(), truth.ravel(), strict=True):
    p = 1 / (1 + math.exp(-z))
    total -= g * math.log(p) + (1 - g) * math.log(1 - p)
  return total / logit.size


def _dice(logit, truth, smooth=1.0):
  total = 0
  for z, g in zip(logit, truth, strict=True):
    p = 1 / (1 + np.exp(-z))
    total += 1 - (2 * (p * g).sum() + smooth) / (p.sum() + g.sum() + smooth)
  return total / len(logit)


def _peers(logits, truth):
  above, below = 0, 0
  for (background, target), g in zip(logits.reshape(-1, 2), truth.ravel(), strict=True):
    most = max(background, target)
    whole = most + math.log(math.exp(background - most) + math.exp(target - most))
    weight = 1.1 if g else 0.9
    above -= weight * ((target if g else background) - whole)
    below += weight
  return 0.9 * above / below + 0.1 * _dice(logits[..., 1] - logits[..., 0], truth)


def _streams(logits, truth, background):
  loss = _bce(logits[..., 1], truth) + _dice(logits[..., 1], truth)
  if background:
    loss += _bce(logits[..., 0], 1 - truth) + _dice(logits[..., 0], 1 - truth)
  return loss


def _shares(truth, height, width):
  B, H, W = truth.shape
  out = np.zeros((B, height, width))
  for b, i, j in np.ndindex(B, height, width):
    rows = slice(i * H // height, (i + 1) * H // height)
    cols = slice(j * W // width, (j + 1) * W // width)
    out[b, i, j] = truth[b, rows, cols].mean()
  return out


def test_joint_losses_equal_loops():
  logits, truth = _draw(0)
  joint = logits[..., 1] - logits[..., 0]
  even = _bce(joint, truth) + _dice(joint, truth)
  assert joint_loss(logits, truth, "even") == pytest.approx(even, rel=1e-5)
  assert joint_loss(logits, truth, "peers") == pytest.approx(_peers(logits, truth), rel=1e-5)


@pytest.mark.parametrize("background", [False, True])
def test_the_whole_loss_equals_a_loop(background):
  logits, truth = _draw(1)
  levels = tuple(
    np.random.default_rng(i).normal(size=(3, h, w, 2)) for i, (h, w) in enumerate(((2, 3), (4, 3)))
  )
  joint = logits[..., 1] - logits[..., 0]
  inner = [_streams(x, _shares(truth, *x.shape[1:3]), background) for x in levels]
  theirs = _bce(joint, truth) + _dice(joint, truth)
  theirs += 0.5 * (_streams(logits, truth, background) + sum(inner) / 2)
  ours = whole_loss(logits, levels, truth, kind="even", background=background)
  assert ours == pytest.approx(theirs, rel=1e-5)
  single = whole_loss(logits, (), truth, kind="even", background=background)
  assert single == pytest.approx(_bce(joint, truth) + _dice(joint, truth), rel=1e-5)


def test_without_its_loss_the_backgrounds_stream_learns_from_the_joint_one_alone():
  logits, truth = _draw(2)

  def own(logits, background):
    return segmentation.stream_loss(logits, truth, background)

  slope = jax.jit(jax.grad(own), static_argnums=1)
  gradient = slope(logits, False)
  assert not np.asarray(gradient[..., 0]).any() and np.asarray(gradient[..., 1]).all()
  assert np.asarray(slope(logits, True)[..., 0]).all()


def test_extreme_logits_and_empty_masks_stay_finite():
  logits = np.array([[[[80.0, -80.0], [-80.0, 80.0]]]])
  slope = jax.jit(jax.grad(segmentation.joint_loss), static_argnums=2)
  for truth in (np.zeros((1, 1, 2)), np.ones((1, 1, 2))):
    for kind in ("even", "peers"):
      assert np.isfinite(np.asarray(slope(logits, truth, kind))).all()


def test_shares_refuse_what_does_not_divide():
  with pytest.raises(ValueError, match="4 x 6 pixels cannot be cut into 3 x 3 cells"):
    segmentation.shares(np.zeros((1, 4, 6)), 3, 3)


def test_rebuilt_words_are_compared_by_their_angle_where_they_were_hidden():
  rng = np.random.default_rng(3)
  full, rebuilt = rng.normal(size=(2, 2, 4, 5))
  noun = np.array([[0, 1, 1, 0], [0, 0, 1, 0]], bool)
  total = 0
  for b, n in np.argwhere(noun):
    x, y = full[b, n], rebuilt[b, n]
    total += 1 - (x @ y) / math.sqrt((x @ x) * (y @ y))
  compute = jax.jit(jax.value_and_grad(segmentation.text_rebuilding_loss, argnums=(0, 1)))
  ours, (to_full, to_rebuilt) = compute(full, rebuilt, noun)
  assert ours == pytest.approx(total / 3, rel=1e-5)
  assert not np.asarray(to_full).any()  # sg(full)
  np.testing.assert_array_equal(np.abs(np.asarray(to_rebuilt)).max(-1) > 0, noun)
  nothing = np.zeros_like(noun)
  assert compute(full, rebuilt, nothing)[0] == 0


def test_rebuilt_cells_are_compared_by_smooth_l1_where_they_were_dropped():
  rng = np.random.default_rng(4)
  goal, rebuilt = 1.5 * rng.normal(size=(2, 2, 3, 2, 5))
  dropped = rng.random((2, 3, 2)) < 0.5
  total = 0
  for place in np.argwhere(dropped):
    away = np.abs(goal[tuple(place)] - rebuilt[tuple(place)])
    total += np.mean([d * d / 2 if d < 1 else d - 0.5 for d in away])
  compute = jax.jit(jax.value_and_grad(segmentation.map_rebuilding_loss, argnums=(0, 1)))
  ours, (to_goal, to_rebuilt) = compute(goal, rebuilt, dropped)
  assert ours == pytest.approx(total / dropped.sum(), rel=1e-5)
  assert not np.asarray(to_goal).any()
  np.testing.assert_array_equal(np.abs(np.asarray(to_rebuilt)).max(-1) > 0, dropped)
  assert compute(goal, rebuilt, np.zeros_like(dropped))[0] == 0
