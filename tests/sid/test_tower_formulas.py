"""The tower against NumPy: its forward, its fields, the loss of a batch with repeats, and two
optimiser steps.
"""

import binascii
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.data import schema
from gr4ad_jax.sid import tower
from gr4ad_jax.swing import swing

NUM, WIDTH, CONTENT = 12, 5, 7


@pytest.fixture(scope="module")
def ads(make):
  """Twelve ads whose fields are known, unknown and out of range."""
  price = np.array([3, 0, np.nan, 8, -4, 1e9, 2, 2, 5, np.nan, 1, 7], np.float32)
  category = np.array(["tea", "", "tea", "cups", "", "x", "y", "z", "tea", "w", "", "v"])
  return make[0](NUM, price=price, category=category)


@pytest.fixture(scope="module")
def text_ND():
  z = np.random.default_rng(4).normal(size=(NUM, CONTENT)).astype(np.float32) * np.linspace(
    0.3, 2, CONTENT
  )
  return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def bucket(name):
  """0 for no name, else one of 255 buckets."""
  return 0 if name == "" else 1 + binascii.crc32(name.encode()) % 255


def fields_of(ads, mean, deviation):
  """[N, 2] scaled log price and whether it is known; buckets of category and account."""
  rows = []
  for price in ads.price:
    known = not math.isnan(price)
    value = (math.log1p(max(float(price), 0)) - mean) / deviation if known else 0.0
    rows.append([min(max(value, -5), 5), float(known)])
  return (
    np.array(rows),
    [bucket(str(c)) for c in ads.category],
    [bucket(str(a)) for a in ads.account_id],
  )


def forward(params, text, price, category, account, math=np):
  """Unit vector of one ad: normalised inputs, a hidden layer with tanh-GELU, plus a linear map
  of the content.
  """
  known = math.concatenate(
    [text, price, params["category/embedding"][category], params["account/embedding"][account]]
  )
  mean = known.mean()
  normed = (known - mean) / math.sqrt(((known - mean) ** 2).mean() + 1e-6)
  x = (normed * params["norm/scale"] + params["norm/bias"]) @ params["hidden/kernel"] + params[
    "hidden/bias"
  ]
  hidden = 0.5 * x * (1 + math.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  z = text @ params["skip/kernel"] + hidden @ params["out/kernel"] + params["out/bias"]
  return z / math.sqrt((z * z).sum() + 1e-12)


def random_params(seed=0):
  """Parameters of which none is zero, by the shapes that the paper's sizes give."""
  shapes = {
    "category/embedding": (256, 16),
    "account/embedding": (256, 16),
    "norm/scale": (CONTENT + 2 + 32,),
    "norm/bias": (CONTENT + 2 + 32,),
    "hidden/kernel": (CONTENT + 2 + 32, 512),
    "hidden/bias": (512,),
    "out/kernel": (512, WIDTH),
    "out/bias": (WIDTH,),
    "skip/kernel": (CONTENT, WIDTH),
  }
  rng = np.random.default_rng(seed)
  return {
    name: (rng.normal(size=shape) / np.sqrt(shape[0]) + 0.1).astype(np.float32)
    for name, shape in shapes.items()
  }


def test_forward_of_any_ads_by_chunks(monkeypatch, ads, text_ND):
  monkeypatch.setattr(tower, "CHUNK", 5)
  params = random_params()
  assert tower.expected_shapes(WIDTH, CONTENT) == {
    name: value.shape for name, value in params.items()
  }
  fitted = tower.Tower(params, (1.1, 0.6))
  price, category, account = fields_of(ads, 1.1, 0.6)
  assert price[:, 0].max() == 5 and price[1, 0] < -1.8 and price[2].tolist() == [0, 0]
  exact = {name: value.astype(np.float64) for name, value in params.items()}
  expected = [
    forward(exact, text_ND[n].astype(float), price[n], category[n], account[n]) for n in range(NUM)
  ]
  found = fitted.embed(text_ND, ads)
  assert fitted.width == WIDTH and found.dtype == np.float32
  np.testing.assert_allclose(found, expected, atol=2e-6)
  with pytest.raises(
    schema.DataError, match=r"content vectors have shape \(11, 7\); the tower takes \[12, 7\]"
  ):
    fitted.embed(text_ND[:11], ads)


def test_an_ad_of_no_content_and_no_parameters_has_no_direction(ads, text_ND):
  blank = {name: np.zeros_like(value) for name, value in random_params().items()}
  assert not tower.Tower(blank, (0.0, 1.0)).embed(0 * text_ND, ads).any()


def test_principal_directions_keep_the_most_of_the_products(text_ND):
  for width in (1, 3, CONTENT, 9):
    start = tower._principal_directions(text_ND, width)
    assert start.shape == (CONTENT, width) and start.dtype == np.float32
    _, _, axes = np.linalg.svd(text_ND.astype(np.float64))
    best = axes[:width].T @ axes[:width]
    np.testing.assert_allclose(start @ start.T, best, atol=1e-5)
    assert not start[:, CONTENT:].any()


def masks_by_loops(ads_of_batch, neighbours):
  """Which places are positives and candidates of each place: every distinct ad but its own is a
  candidate, once.
  """
  size = len(ads_of_batch)
  positive = np.zeros((size, size))
  candidate = np.zeros((size, size))
  for place, ad in enumerate(ads_of_batch):
    seen = set()
    for at, other in enumerate(ads_of_batch):
      if other != ad and other not in seen:
        seen.add(other)
        candidate[place, at] = 1
        positive[place, at] = other in neighbours[ad]
  return positive, candidate


def drawn(neighbors, seed, step):
  """The ads of a step's batch: anchors, a positive of each by similarity, and half as many at
  random.
  """
  anchors = [n for n in range(NUM) if (neighbors.ads_NK[n] >= 0).any()]
  first, second, third = jax.random.split(jax.random.fold_in(jax.random.key(seed), step), 3)
  anchor = np.asarray(jax.random.choice(first, jnp.asarray(anchors), (NUM,)))
  weight = np.where(neighbors.ads_NK >= 0, neighbors.similarity_NK, 0)
  with np.errstate(divide="ignore"):
    slot = np.asarray(jax.random.categorical(second, jnp.log(jnp.asarray(weight[anchor]))))
  other = np.asarray(jax.random.randint(third, (NUM // 2,), 0, NUM))
  return np.concatenate([anchor, neighbors.ads_NK[anchor, slot], other]).tolist()


@pytest.fixture(scope="module")
def neighbors():
  """Unequal similarities; ad 3 has no neighbour, 5 and 6 one."""
  rng = np.random.default_rng(1)
  ads_NK = np.array(
    [rng.choice(np.setdiff1d(np.arange(NUM), [n]), 3, replace=False) for n in range(NUM)]
  )
  ads_NK[3] = -1
  ads_NK[[5, 6], 1:] = -1
  return swing.Neighbors(
    ads_NK.astype(np.int32), np.where(ads_NK >= 0, rng.uniform(0.1, 3, (NUM, 3)), 0).astype("f4")
  )


class Told:
  """Keeps what a fit logs."""

  def __init__(self):
    self.lines = []

  def info(self, text, *values):
    self.lines.append(text % values)


def test_two_steps_are_adamw_on_the_loss_of_the_drawn_batches(ads, text_ND, neighbors):
  told = Told()
  options = {"width": WIDTH, "temperature": 0.4, "seed": 7}
  start = tower.fit_tower(text_ND, ads, neighbors, steps=0, **options)
  known = [math.log1p(max(float(price), 0)) for price in ads.price if not math.isnan(price)]
  np.testing.assert_allclose(start.price, [np.mean(known), np.std(known)], rtol=1e-5)
  np.testing.assert_array_equal(
    start.params["skip/kernel"], tower._principal_directions(text_ND, WIDTH)
  )
  assert 5e-4 < start.params["out/kernel"].std() < 2e-3 and not start.params["out/bias"].any()
  price, category, account = fields_of(ads, *start.price)
  neighbours = [set(row[row >= 0].tolist()) for row in neighbors.ads_NK]

  @jax.jit
  def slopes_of(params, batch, positive, candidate):
    def loss_of(params):
      columns = (text_ND, price.astype("f4"), np.array(category), np.array(account))
      every = jax.vmap(lambda *ad: forward(params, *ad, jnp))(*columns)
      odds = jnp.exp(every[batch] @ every[batch].T / 0.4)
      anchors = positive.any(axis=1)
      above = jnp.where(anchors, (odds * positive).sum(axis=1), 1)
      below = jnp.where(anchors, (odds * candidate).sum(axis=1), 1)
      terms = -jnp.log(above / below)
      return terms.sum() / anchors.sum()

    return jax.value_and_grad(loss_of)(params)

  params = {name: np.asarray(value, np.float64) for name, value in start.params.items()}
  first = {name: np.zeros_like(value) for name, value in params.items()}
  second = {name: np.zeros_like(value) for name, value in params.items()}
  losses = []
  for step in range(2):
    batch = drawn(neighbors, 7, step)
    assert len(set(batch)) < len(batch)  # some ads stand in the batch twice
    single = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    loss, slopes = slopes_of(single, np.array(batch), *masks_by_loops(batch, neighbours))
    losses.append(float(loss))
    rate = 2e-3 * 0.5 * (1 + math.cos(math.pi * step / 2))
    for name, slope in slopes.items():
      slope = np.asarray(slope, np.float64)
      first[name] = 0.9 * first[name] + 0.1 * slope
      second[name] = 0.999 * second[name] + 0.001 * slope**2
      move = (
        first[name]
        / (1 - 0.9 ** (step + 1))
        / (np.sqrt(second[name] / (1 - 0.999 ** (step + 1))) + 1e-8)
      )
      params[name] = params[name] - rate * (move + 0.01 * params[name])
  fitted = tower.fit_tower(text_ND, ads, neighbors, steps=2, log=told, **options)
  for name, value in fitted.params.items():
    # Where a slope is nearly nothing Adam's first move is of its sign alone: few entries may
    # differ.
    close = np.abs(value - params[name]) < 2e-5 + 1e-4 * np.abs(params[name])
    assert close.mean() > 0.995, (name, close.mean())
    assert value.dtype == np.float32
  assert told.lines == [
    f"tower step {step + 1} of 2: InfoNCE {loss:.4f}" for step, loss in enumerate(losses)
  ]


def test_a_batch_is_256_anchors_where_there_are_as_many_ads(monkeypatch, make, text_ND):
  """Anchors, as many positives, and half as many at random."""
  num, seen = 300, []
  real = tower.multi_positive_info_nce
  monkeypatch.setattr(
    tower, "multi_positive_info_nce", lambda z, *more: (seen.append(z.shape), real(z, *more))[1]
  )
  text = np.resize(text_ND, (num, CONTENT))
  pairs = swing.Neighbors(
    (np.arange(num)[:, None] ^ 1).astype(np.int32), np.ones((num, 1), np.float32)
  )
  prices = np.full(num, 5, np.float32)
  fitted = tower.fit_tower(
    text, make[0](num, price=prices), pairs, width=WIDTH, steps=1, temperature=0.2, seed=0
  )
  assert seen == [(256 + 256 + 128, WIDTH)]
  np.testing.assert_allclose(fitted.price, [math.log1p(5), 1])  # all alike: no division by nothing


def test_every_hundredth_step_and_the_last_are_told(make, text_ND):
  told, unknown = Told(), make[0](2, price=np.full(2, np.nan, np.float32))
  pairs = swing.Neighbors(np.array([[1], [0]], np.int32), np.ones((2, 1), np.float32))
  fitted = tower.fit_tower(
    text_ND[:2], unknown, pairs, width=WIDTH, steps=102, temperature=0.2, seed=0, log=told
  )
  assert [line.split(":")[0] for line in told.lines] == [
    f"tower step {n} of 102" for n in (1, 101, 102)
  ]
  assert fitted.price == (0.0, 1.0)


def test_the_loss_counts_candidates_alone():
  rng = np.random.default_rng(0)
  z = rng.normal(size=(5, 3)).astype(np.float32)
  candidate = np.array(
    [[0, 1, 1, 0, 1], [1, 0, 1, 0, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 1], [1, 1, 1, 0, 0]], bool
  )
  positive = candidate & (rng.random((5, 5)) < 0.6)
  positive[1] = False
  assert positive.any(axis=1).sum() > 2
  terms = []
  for i in range(5):
    odds = [math.exp(float(z[i] @ z[j]) / 0.3) for j in range(5)]
    above = sum(odds[j] for j in range(5) if positive[i, j])
    below = sum(odds[j] for j in range(5) if candidate[i, j])
    if positive[i].any():
      terms.append(-math.log(above / below))
  found = jax.jit(tower.multi_positive_info_nce)(z, positive, candidate, 0.3)
  np.testing.assert_allclose(found, np.mean(terms), rtol=1e-5)
  with pytest.raises(AssertionError):
    tower.multi_positive_info_nce(
      jnp.asarray(z), jnp.asarray(positive[0]), jnp.asarray(candidate), 0.3
    )
