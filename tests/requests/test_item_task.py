"""Places that are learned from, the losses on a model, and its bias on the history."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.config import Config, ItemConfig
from gr4ad_jax.decoding.item_ranker import ItemRanker
from gr4ad_jax.models.history_bias import NAME as HISTORY_BIAS
from gr4ad_jax.parallel import row_tables
from gr4ad_jax.requests import item_task
from gr4ad_jax.requests import places as places_lib
from gr4ad_jax.zoo import registry
from tests.models import tiny

SHARE = np.full(tiny.NUM_ADS, 1 / tiny.NUM_ADS)
KEY = jax.random.key(0)


def system(**items):
  model = dataclasses.replace(tiny.CONFIG, model="sasrec", layers=1, dropout=0.0, history_bias=True)
  module = registry.build(Config(model=model, items=ItemConfig(**items)), tiny.NUM_ADS)
  batch = tiny.make_batch()
  return module, tiny.draw_params(module, batch, bias=-0.7), batch


def loss_of(**items):
  model, params, batch = system(**items)
  return tiny.jit(item_task.make_item_loss(model, SHARE))(params, batch, KEY)[0]


def test_places_are_the_last_ones_and_all_inner_ones_that_fit():
  batch = tiny.make_batch()  # histories of 3, 6, 0 and 0 ads
  places = jax.device_get(jax.jit(places_lib.places_of, static_argnums=1)(batch, 3, KEY))
  assert places.row_P[:4].tolist() == [0, 1, 2, 3] and places.place_P[:4].tolist() == [3, 6, 0, 0]
  np.testing.assert_array_equal(places.target_PM[:4], batch.target_ad_BM)
  inner = {
    (int(row), int(place), int(target))
    for row, place, target, real in zip(
      places.row_P[4:],
      places.place_P[4:],
      places.target_PM[4:, 0],
      places.mask_PM[4:, 0],
      strict=True,
    )
    if real
  }
  ads = batch.slot_ad_BS
  expected = {(0, i, int(ads[0, i])) for i in (1, 2)} | {
    (1, i, int(ads[1, i])) for i in range(1, 6)
  }
  assert inner == expected and not places.mask_PM[4:, 1:].any()


def test_more_inner_places_than_fit_are_drawn():
  batch = tiny.make_batch()
  draw = jax.jit(lambda seed: places_lib.places_of(batch, 1, jax.random.key(seed)))
  drawn = [jax.device_get(draw(seed)) for seed in range(6)]
  chosen = {
    tuple(sorted(zip(p.row_P[4:].tolist(), p.place_P[4:].tolist(), strict=True))) for p in drawn
  }
  assert all(p.mask_PM[4:, 0].all() for p in drawn) and len(chosen) > 1


@pytest.mark.parametrize("inner", [pytest.param(False, marks=pytest.mark.long), True])
def test_sampling_all_ads_is_the_softmax(inner):
  both = {"inner_targets": inner, "inner_positions": 3}
  full, sampled = (
    loss_of(item_loss=name, item_negatives=999, **both) for name in ("softmax", "sampled")
  )
  np.testing.assert_allclose(full, sampled, rtol=1e-5)


def gradients(*params, **items):
  """The loss's gradient at each of some parameters."""
  model, _, batch = system(**items)
  run = tiny.jit(jax.grad(lambda p: item_task.make_item_loss(model, SHARE)(p, batch, KEY)[0]))
  return [run(one) for one in params]


@pytest.mark.parametrize(
  "name", ["sampled", *(pytest.param(name, marks=pytest.mark.long) for name in ("softmax", "bce"))]
)
def test_the_model_learns_without_the_bias(name):
  params, items = system()[1], {"item_loss": name, "item_negatives": 8}
  biases = ({HISTORY_BIAS: np.float32(bias)} for bias in (0.0, 0.4))
  here, there = gradients(*(params | bias for bias in biases), **items)
  assert abs(here.pop(HISTORY_BIAS) - there.pop(HISTORY_BIAS)) > 1e-3
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), here, there)


# The slope of the softmax by loops is in `test_item_loss_values.py`.
@pytest.mark.parametrize("name", [pytest.param("softmax", marks=pytest.mark.long), "sampled"])
def test_the_bias_learns_under_itself(name):
  """Its gradient is that of -log p of the scores that rank, bias included."""
  model, params, batch = system(item_loss=name, item_negatives=999)

  def loss(bias):
    logp_BN = jax.nn.log_softmax(
      model.apply({"params": params | {HISTORY_BIAS: bias}}, batch), axis=-1
    )
    own_BM = jnp.take_along_axis(logp_BN, jnp.maximum(batch.target_ad_BM, 0), axis=1)
    return jnp.where(batch.target_mask_BM, -own_BM, 0).sum() / batch.target_mask_BM.sum()

  found = gradients(params, item_loss=name, item_negatives=999)[0][HISTORY_BIAS]
  expected = jax.jit(jax.grad(loss))(jnp.float32(params[HISTORY_BIAS]))
  assert abs(expected) > 1e-2
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_each_run_of_rows_gives_one_ad_evenly():
  """So each ad is drawn at most once, with probability 1 / the length of its run, which is its
  weight.
  """
  lengths = [2, 3, 2, 3]  # of 10 ads
  draw = jax.jit(jax.vmap(lambda key: item_task.draw_of_strata(key, 10, 4)))
  drawn, log_length = jax.device_get(draw(jax.random.split(KEY, 6000)))
  np.testing.assert_allclose(np.exp(log_length[0]), lengths, rtol=1e-6)
  ends = np.cumsum(lengths)
  assert (drawn < ends).all() and (drawn >= ends - lengths).all()
  share = np.bincount(drawn.ravel(), minlength=10) / len(drawn)
  np.testing.assert_allclose(share, np.repeat(1 / np.array(lengths), lengths), atol=0.03)
  value = np.random.default_rng(0).random(10)
  estimates = (value[drawn] * np.exp(log_length)).sum(axis=1)
  assert abs(estimates.mean() - value.sum()) < 4 * estimates.std() / np.sqrt(len(drawn))


def test_runs_of_rows_do_not_overflow():
  """K times N is past 2^31."""
  drawn, log_length = item_task.draw_of_strata(KEY, 2_000_000_011, 4096)
  assert (np.diff(drawn) > 0).all() and drawn[0] >= 0 and drawn[-1] > 1_999_000_000
  np.testing.assert_allclose(np.exp(np.float64(log_length)).sum(), 2_000_000_011, rtol=1e-6)


@pytest.mark.parametrize(("loss", "name"), [("softmax", "two_tower"), ("sampled", "sasrec")])
def test_rows_that_are_no_ad_change_nothing(loss, name, monkeypatch):
  """A large table is padded; neither loss nor scores see it."""
  batch, found = tiny.make_batch(), []
  for small in (row_tables.SMALL, 8):
    monkeypatch.setattr(row_tables, "SMALL", small)
    model = registry.build(
      Config(
        model=dataclasses.replace(
          tiny.CONFIG, model=name, layers=1, dropout=0.0, history_bias=True
        ),
        items=ItemConfig(item_loss=loss, item_negatives=8, item_smoothing=0.2),
      ),
      tiny.NUM_ADS,
    )
    params = tiny.draw_params(model, batch, bias=-0.7)
    if found:
      assert params["items"].shape == (row_tables.MULTIPLE, 16)
      params = found[0][0] | {
        "items": np.pad(found[0][0]["items"], ((0, row_tables.MULTIPLE - tiny.NUM_ADS), (0, 0)))
      }
    value = tiny.jit(item_task.make_item_loss(model, SHARE))(params, batch, KEY)[0]
    found.append((params, value, *ItemRanker(model).search(params, batch, 9)))
  for plain, padded in list(zip(*found, strict=True))[1:]:
    np.testing.assert_allclose(plain, padded, rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", ["softmax", "sampled", "bce", "inbatch"])
def test_every_loss_learns(name):
  model, params, batch = system(
    item_loss=name, item_negatives=8, inner_targets=True, inner_positions=3
  )
  step = tiny.jit(jax.value_and_grad(item_task.make_item_loss(model, SHARE), has_aux=True))
  first = None
  for i in range(60):
    (loss, _), grads = step(params, batch, jax.random.key(i))
    first = loss if first is None else first
    params = jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)
  assert np.isfinite(loss) and loss < 0.8 * first


def test_inbatch_negatives_weigh_by_how_rarely_they_are_targets():
  """Each negative counts e^score / (targets of the batch x its share), one's own targets as they
  are; no bias.
  """
  model, params, batch = system(item_loss="inbatch")
  share = np.random.default_rng(3).random(tiny.NUM_ADS) + 0.1
  share /= share.sum()
  found = tiny.jit(item_task.make_item_loss(model, share))(params, batch, KEY)[0]
  plain = {"params": params | {HISTORY_BIAS: np.float32(0)}}
  scores = np.asarray(tiny.jit(lambda v: model.apply(v, batch))(plain))
  real = [(b, m) for b, m in np.ndindex(*batch.target_mask_BM.shape) if batch.target_mask_BM[b, m]]
  ads, losses = [batch.target_ad_BM[b, m] for b, m in real], []
  for b, m in real:
    own = {int(batch.target_ad_BM[b, n]) for c, n in real if c == b}
    total = sum(np.exp(scores[b, ad]) / (len(ads) * share[ad]) for ad in ads if int(ad) not in own)
    total += sum(np.exp(scores[b, batch.target_ad_BM[b, n]]) for c, n in real if c == b)
    losses.append(np.log(total) - scores[b, batch.target_ad_BM[b, m]])
  np.testing.assert_allclose(found, np.mean(losses), rtol=1e-4)
