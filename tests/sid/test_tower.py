"""The tower's loss equals its formula, and training brings co-taken ads together, the unseen
ones too.
"""

import jax
import numpy as np
import pytest

from gr4ad_jax.data import schema
from gr4ad_jax.sid import report, tower
from gr4ad_jax.swing import swing

# As wide as the content and of as many steps wherever it is of no matter: the same programs.
OPTIONS = {"width": 16, "temperature": 0.1, "seed": 0}
info_nce = jax.jit(tower.multi_positive_info_nce)


def content(ads, width=16):
  """Random unit content vectors."""
  z = np.random.default_rng(5).normal(size=(len(ads), width)).astype(np.float32)
  return z / np.linalg.norm(z, axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(3))
def test_loss_equals_loops(seed):
  rng = np.random.default_rng(seed)
  z = rng.normal(size=(6, 4)).astype(np.float32)
  candidate = ~np.eye(6, dtype=bool)
  positive = (rng.random((6, 6)) < 0.4) & candidate
  positive[2] = False
  terms = []
  for i in range(6):
    if positive[i].any():
      above = sum(np.exp(z[i] @ z[j] / 0.5) for j in range(6) if positive[i, j])
      below = sum(np.exp(z[i] @ z[k] / 0.5) for k in range(6) if k != i)
      terms.append(-np.log(above / below))
  loss = info_nce(z, positive, candidate, 0.5)
  np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-5)


def test_loss_without_positives_is_zero_with_finite_gradient():
  z, none = np.ones((3, 2), np.float32), np.zeros((3, 3), bool)
  compute = jax.jit(jax.value_and_grad(tower.multi_positive_info_nce))
  loss, grad = compute(z, none, ~np.eye(3, dtype=bool), 0.1)
  assert loss == 0 and (grad == 0).all()


def test_starts_as_the_content_vectors(shop):
  ads, events = shop
  text = content(ads)
  neighbors = swing.fit_swing(events, len(ads))
  z = tower.fit_tower(text, ads, neighbors, steps=0, **OPTIONS).embed(text, ads)
  assert np.abs(z @ z.T - text @ text.T).max() < 0.1


@pytest.mark.long
def test_training_raises_recall_of_held_out_pairs(shop):
  ads, events = shop
  text = content(ads, 24)
  train, out = swing.fit_swing(events, len(ads)).split(0.1, seed=0)
  z = tower.fit_tower(text, ads, train, steps=400, **OPTIONS).embed(text, ads)
  np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-4)
  before, after = (report.item_recall(v, out, train)["recall@10"] for v in (text, z))
  assert after > 0.65 and after > 3 * before  # .70 to .84 and 5 to 21 times, over three splits


def test_seed_decides_and_unseen_ads_get_vectors(shop, make):
  ads, events = shop
  make_ads, _ = make
  text = content(ads)
  neighbors = swing.fit_swing(events, len(ads))
  first, again = (tower.fit_tower(text, ads, neighbors, steps=5, **OPTIONS) for _ in range(2))
  other = tower.fit_tower(text, ads, neighbors, steps=5, **OPTIONS | {"seed": 1})
  np.testing.assert_array_equal(first.embed(text, ads), again.embed(text, ads))
  assert not np.array_equal(first.embed(text, ads), other.embed(text, ads))
  new = make_ads(3, price=np.full(3, np.nan, np.float32), category=np.full(3, "never seen"))
  z = first.embed(content(new), new)
  assert z.shape == (3, 16) and np.isfinite(z).all()


def test_errors(shop):
  ads, events = shop
  nothing = swing.Neighbors(
    np.full((len(ads), 2), -1, np.int32), np.zeros((len(ads), 2), np.float32)
  )
  with pytest.raises(schema.DataError, match="no two ads"):
    tower.fit_tower(content(ads), ads, nothing, steps=1, **OPTIONS)
  fitted = tower.fit_tower(content(ads), ads, swing.fit_swing(events, len(ads)), steps=5, **OPTIONS)
  with pytest.raises(schema.DataError, match=r"takes \[120, 16\]"):
    fitted.embed(content(ads, 8), ads)
