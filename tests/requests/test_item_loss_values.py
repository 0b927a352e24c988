"""Losses of models of single ads against loops: places, strata, bias and weights, whatever the
draw.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.config import Config, ItemConfig
from gr4ad_jax.features.batches import HISTORY
from gr4ad_jax.requests import item_task
from gr4ad_jax.zoo import registry
from tests.models import tiny
from tests.zoo import item_reference as reference

N, B, BIAS, SMOOTHING, NEGATIVES, HEADS, KEY = tiny.NUM_ADS, 4, -0.7, 0.2, 7, 4, jax.random.key(3)
SHARE = np.arange(1, N + 1) / np.arange(1, N + 1).sum()


def make_batch():
  """The tiny batch; some targets are of the history, one request has one twice, two share one;
  one has none.
  """
  batch = tiny.make_batch()
  ads, mask = batch.target_ad_BM.copy(), batch.target_mask_BM.copy()
  ads[0, :3] = batch.slot_ad_BS[0, 1], 4, 4
  ads[1, :2] = batch.slot_ad_BS[1, 5], 4
  mask[0, :3] = mask[1, :2] = True
  mask[2] = False
  return batch._replace(target_ad_BM=ads, target_mask_BM=mask)


BATCH = make_batch()
HISTORIES = [[int(ad) for ad, kind in zip(*row, strict=True) if kind == HISTORY]
             for row in zip(BATCH.slot_ad_BS, BATCH.slot_kind_BS, strict=True)]  # fmt: skip


def build(**items):
  model = dataclasses.replace(
    tiny.CONFIG, model="sasrec", layers=1, heads=HEADS, dropout=0.0, history_bias=True
  )  # fmt: skip
  items = ItemConfig(item_smoothing=SMOOTHING, item_negatives=NEGATIVES, inner_positions=3, **items)
  return registry.build(Config(model=model, items=items), N)


@functools.lru_cache
def params():
  return tiny.draw_params(build(), BATCH, bias=BIAS)


def places(inner):
  """(request, ads seen, targets) of every place that is learned from."""
  found = []
  for b, ads in enumerate(HISTORIES):
    targets = [
      int(ad)
      for ad, real in zip(BATCH.target_ad_BM[b], BATCH.target_mask_BM[b], strict=True)
      if real
    ]
    found.append((b, len(ads), targets))
    found += [(b, i, [ads[i]]) for i in range(1, len(ads))] if inner else []
  return found


@functools.lru_cache
def scores_at():
  """Scores of all ads at every place of every request, without the bias: lists of [N]."""
  p = params()
  slots = BATCH.slot_ad_BS.shape[1]
  states = [reference.sasrec(p, ads + [-1] * (slots - len(ads)), HEADS, 1) for ads in HISTORIES]
  return [state @ np.float64(p["items"]).T for state in states]


def biased(b, seen, bias):
  """Scores of all ads, the bias added to those that the place has seen."""
  scores = scores_at()[b][seen].copy()
  for ad in HISTORIES[b][:seen]:
    scores[ad] += bias
  return scores


def softmax(inner, bias, drawn):
  del drawn
  losses = []
  for b, seen, targets in places(inner):
    scores = biased(b, seen, bias)
    logp = scores - np.log(np.exp(scores).sum())
    losses += [-(1 - SMOOTHING) * logp[ad] - SMOOTHING * logp.mean() for ad in targets]
  return np.mean(losses)


def sampled(inner, bias, drawn):
  """One ad of each of NEGATIVES runs of rows stands for its run, unless it is counted as a
  target or as history.
  """
  ends = [k * N // NEGATIVES for k in range(NEGATIVES + 1)]
  run = {int(ad): ends[k + 1] - ends[k] for k, ad in enumerate(drawn)}
  assert all(ends[k] <= ad < ends[k + 1] for k, ad in enumerate(drawn))
  losses = []
  for b, seen, targets in places(inner):
    scores, history = biased(b, seen, bias), HISTORIES[b][:seen]
    total = sum(np.exp(scores[ad]) for ad in targets)  # one that stands twice is counted twice
    total += sum(np.exp(scores[ad]) for ad in history if ad not in targets)
    total += sum(
      size * np.exp(scores[ad])
      for ad, size in run.items()
      if ad not in targets and ad not in history
    )
    losses += [np.log(total) - scores[ad] for ad in targets]
  return np.mean(losses)


def inbatch(inner, bias, drawn):
  """The others' targets, each over how often it is expected among the batch's; own ones as they
  are.
  """
  del drawn
  every = [ad for _, _, targets in places(inner) for ad in targets]
  losses = []
  for b, seen, targets in places(inner):
    plain, scores = biased(b, seen, 0.0), biased(b, seen, bias)
    total = sum(np.exp(scores[ad]) for ad in targets)
    total += sum(np.exp(plain[ad]) / (len(every) * SHARE[ad]) for ad in every if ad not in targets)
    losses += [np.log(total) - scores[ad] for ad in targets]
  return np.mean(losses)


def bce(inner, bias, drawn):
  """One drawn ad beside each target."""
  losses, at = [], {(b, seen): row for (b, seen), row in drawn}
  for b, seen, targets in places(inner):
    scores = biased(b, seen, bias)
    columns = np.flatnonzero(BATCH.target_mask_BM[b]) if seen == len(HISTORIES[b]) else [0]
    for m, ad in zip(columns, targets, strict=True):
      losses.append(np.log1p(np.exp(-scores[ad])) + np.log1p(np.exp(scores[at[b, seen][m]])))
  return np.mean(losses)


def drawn_by(loss_fn, kind):
  """Rows of the ads that a step draws; of bce by place."""
  if kind not in ("sampled", "bce"):
    return None
  touched = jax.device_get(jax.jit(loss_fn.touch)(BATCH, KEY))
  rows = touched.row_U[touched.drawn]
  if kind == "sampled":
    return rows
  at = zip(
    touched.places.row_P.tolist(),
    touched.places.place_P.tolist(),
    touched.places.mask_PM.any(1),
    strict=True,
  )
  return [((b, seen), row) for (b, seen, real), row in zip(at, rows, strict=True) if real]


@pytest.mark.parametrize(
  ("kind", "inner"),
  [("softmax", False), ("softmax", True), ("sampled", True), ("inbatch", True), ("bce", True)],
)
def test_loss_and_the_slope_of_its_bias(kind, inner):
  """The loss is that without the bias; the bias learns by the slope of the loss under it."""
  by_hand = {"softmax": softmax, "sampled": sampled, "inbatch": inbatch, "bce": bce}[kind]
  loss_fn = item_task.make_item_loss(build(item_loss=kind, inner_targets=inner), SHARE)
  drawn = drawn_by(loss_fn, kind)
  run = tiny.jit(jax.value_and_grad(loss_fn, has_aux=True))
  (loss, metrics), gradient = run(params(), BATCH, KEY)
  np.testing.assert_allclose(loss, by_hand(inner, 0.0, drawn), rtol=1e-4)
  np.testing.assert_allclose(metrics["loss"], by_hand(inner, 0.0, drawn), rtol=1e-4)
  np.testing.assert_allclose(metrics["item_bias"], BIAS, rtol=1e-5)
  slope = (by_hand(inner, BIAS + 1e-4, drawn) - by_hand(inner, BIAS - 1e-4, drawn)) / 2e-4
  assert abs(slope) > 1e-3
  np.testing.assert_allclose(
    gradient["history_bias"], 10 * slope, rtol=2e-3
  )  # b is ten times its parameter


def test_bce_draws_evenly_from_all_ads():
  loss_fn = item_task.make_item_loss(build(item_loss="bce"), SHARE)

  def rows(key):
    touched = loss_fn.touch(BATCH, key)
    return touched.row_U[touched.drawn]

  drawn = tiny.jit(jax.vmap(rows))(jax.random.split(KEY, 400))
  share = np.bincount(np.asarray(drawn).ravel(), minlength=N) / drawn.size
  assert len(share) == N
  np.testing.assert_allclose(share, 1 / N, rtol=0.25)


def test_no_more_negatives_are_drawn_than_there_are_ads():
  loss_fn = item_task.make_item_loss(
    dataclasses.replace(build(), items=ItemConfig(item_loss="sampled")), SHARE
  )
  touched = jax.jit(loss_fn.touch)(BATCH, KEY)
  assert sorted(np.asarray(touched.row_U[touched.drawn])) == list(range(N))
  np.testing.assert_array_equal(touched.log_weight, np.zeros(N))


@pytest.mark.parametrize("kind", ["softmax", pytest.param("bce", marks=pytest.mark.long)])
def test_dropout_is_applied_and_drawn_anew(kind):
  model = build(item_loss=kind)
  model = model.clone(config=dataclasses.replace(model.config, dropout=0.5))
  run = tiny.jit(lambda p, key: item_task.make_item_loss(model, SHARE)(p, BATCH, key)[0])
  one, two = (float(run(params(), jax.random.key(seed))) for seed in (1, 2))
  assert abs(one - two) > 1e-3


def test_the_items_loss_is_added_by_its_weight_once():
  """Each part has randomness of its own; the metrics are those of the generative loss, and the
  head's beside them.
  """
  keys = []

  def generative(params, batch, key):
    keys.append(key)
    return params + batch, {
      "loss": params + batch,
      "sid": jnp.float32(7.0),
      "item": jnp.float32(-1.0),
    }

  def item(params, batch, key):
    keys.append(key)
    return params * batch, {"loss": params * batch, "item_bias": jnp.float32(0.25)}

  both = item_task.with_item_loss(generative, item, 0.3)
  loss, metrics = both(jnp.float32(2.0), jnp.float32(5.0), KEY)
  np.testing.assert_allclose(loss, 7 + 0.3 * 10, rtol=1e-6)
  assert {name: round(float(x), 5) for name, x in metrics.items()} == {
    "loss": 10.0, "sid": 7.0, "item": 10.0, "item_bias": 0.25,
  }  # fmt: skip
  assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 2
