"""Metrics of masks against loops."""

import math

import numpy as np
import pytest

from gr4ad_jax.segmentation import metrics


def _masks(seed, count=12, side=20):
  rng = np.random.default_rng(seed)
  truth = np.zeros((count, side, side), bool)
  found = np.zeros_like(truth)
  for i in range(count):
    y, x, h, w = rng.integers(0, side // 2, 2).tolist() + rng.integers(2, side // 2, 2).tolist()
    truth[i, y : y + h, x : x + w] = True
    dy, dx = rng.integers(-2, 3, 2)
    found[i] = np.roll(truth[i], (dy, dx), (0, 1))
  found[0] = False
  truth[1] = found[1] = False
  return found, truth


def _boundary(mask):
  side = len(mask)
  edge = []
  for i, j in np.argwhere(mask):
    near = [(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
    if any(not (0 <= a < side and 0 <= b < side) or not mask[a, b] for a, b in near):
      edge.append((i, j))
  return edge


def _f(found, truth):
  one, other = _boundary(found), _boundary(truth)
  if not one and not other:
    return 1.0
  reach = max(1.0, metrics.TOLERANCE * math.hypot(*truth.shape))

  def share(these, those):
    if not these or not those:
      return 0.0
    near = [any(math.dist(a, b) <= reach + 1e-9 for b in those) for a in these]
    return sum(near) / len(near)

  precision, recall = share(one, other), share(other, one)
  return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_metrics_equal_loops():
  found, truth = _masks(0)
  both, either, ious = 0, 0, []
  for one, other in zip(found, truth, strict=True):
    inter = sum(a and b for a, b in zip(one.ravel(), other.ravel(), strict=True))
    union = sum(a or b for a, b in zip(one.ravel(), other.ravel(), strict=True))
    both, either = both + inter, either + union
    ious.append(inter / union if union else 1.0)
  values = metrics.values(metrics.count(found, truth))
  assert values["oIoU"] == pytest.approx(both / either)
  assert values["mIoU"] == pytest.approx(np.mean(ious))
  for level in metrics.LEVELS:
    assert values[f"Pr@{level}"] == pytest.approx(np.mean([iou >= level for iou in ious]))
  theirs = [_f(a, b) for a, b in zip(found, truth, strict=True)]
  assert values["F"] == pytest.approx(np.mean(theirs))
  assert values["oIoU"] != pytest.approx(values["mIoU"])


def test_counts_of_parts_merge_into_those_of_all():
  found, truth = _masks(1)
  whole = metrics.count(found, truth)
  merged = metrics.count(found[:5], truth[:5]).merge(metrics.count(found[5:], truth[5:]))
  for name in ("both", "either", "boundary"):
    np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))
  first = metrics.values(metrics.count(found[:5], truth[:5]))["oIoU"]
  second = metrics.values(metrics.count(found[5:], truth[5:]))["oIoU"]
  assert metrics.values(whole)["oIoU"] != pytest.approx((first + second) / 2)


def test_intervals_draw_an_images_sentences_together():
  found, truth = _masks(2)
  counts = metrics.count(found, truth)
  image = np.arange(len(found)) // 3
  spans = metrics.intervals(counts, image)
  rng, samples = np.random.default_rng(0), []
  for _ in range(2000):
    drawn = np.concatenate([np.flatnonzero(image == i) for i in rng.integers(4, size=4)])
    samples.append(counts.both[drawn].sum() / counts.either[drawn].sum())
  low, high = np.quantile(samples, (0.025, 0.975))
  assert spans["oIoU"].mean == metrics.values(counts)["oIoU"]
  np.testing.assert_allclose((spans["oIoU"].low, spans["oIoU"].high), (low, high), atol=0.03)


def test_groups_are_scored_by_themselves_and_empty_ones_left_out():
  found, truth = _masks(3)
  counts = metrics.count(found, truth)
  rows = np.arange(12) < 4
  by = metrics.grouped(counts, {"first": rows, "none": np.zeros(12, bool)})
  assert list(by) == ["first"] and by["first"].pop("sentences") == 4
  assert by["first"] == metrics.values(metrics.count(found[:4], truth[:4]))


def test_finding_nothing_where_nothing_is_meant_is_right():
  empty = np.zeros((1, 4, 4), bool)
  values = metrics.values(metrics.count(empty, empty))
  assert set(values.values()) == {1.0}
  some = empty.copy()
  some[0, 1, 1] = True
  assert set(metrics.values(metrics.count(empty, some)).values()) == {0.0}


@pytest.mark.parametrize(
  ("found", "truth"),
  [
    (np.zeros((1, 4, 4)), np.zeros((1, 4, 4), bool)),
    (np.zeros((1, 4, 4), bool), np.zeros((1, 4, 5), bool)),
    (np.zeros((4, 4), bool), np.zeros((4, 4), bool)),
  ],
)
def test_masks_of_another_shape_or_kind_are_refused(found, truth):
  with pytest.raises(ValueError, match=r"bool \[L, H, W\] are needed"):
    metrics.count(found, truth)
