"""The RQ-VAE: its losses by hand, codes that find clusters and do not collapse, and the
tokenizer made with it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax import config
from gr4ad_jax.data import schema
from gr4ad_jax.sid import rqvae, tokenizer

SETTINGS = config.SidConfig(
  codebooks=(8, 4, 16),
  tower_steps=0,
  quantizer="rqvae",
  rqvae_width=6,
  rqvae_steps=150,
  kmeans_iterations=3,
)


def by_hand(z_ND, codes):
  """Losses, sums and numbers of the codes, a vector and a level at a time."""
  losses, sums, chosen = [], [], []
  for z in z_ND:
    residual, loss, total, row = z.copy(), 0.0, np.zeros_like(z), []
    for table in codes:
      number = int(np.argmin(np.square(residual - table).sum(axis=1)))
      loss += 1.25 * np.square(residual - table[number]).sum()
      residual, total = residual - table[number], total + table[number]
      row.append(number)
    losses.append(loss), sums.append(total), chosen.append(row)
  return np.array(losses), np.array(sums), np.array(chosen)


def test_losses_and_codes_are_those_of_the_definition():
  rng = np.random.default_rng(0)
  z, codes = rng.normal(size=(40, 5)), [rng.normal(size=(size, 5)) for size in (7, 4, 3)]
  single = z.astype(np.float32), [table.astype(np.float32) for table in codes]
  loss, total, chosen, _ = jax.jit(rqvae.quantize)(*single)
  expected = by_hand(z, codes)
  np.testing.assert_allclose(loss, expected[0], rtol=1e-4)
  np.testing.assert_allclose(total, expected[1], atol=1e-5)
  np.testing.assert_array_equal(np.stack(chosen, axis=1), expected[2])


def test_each_gradient_goes_where_it_belongs():
  """Of the sum of codes to the latent alone; of a level's loss to its own code and, by
  COMMITMENT, to the latent.
  """
  rng = np.random.default_rng(1)
  z = rng.normal(size=(1, 5)).astype(np.float32)
  codes = [rng.normal(size=(size, 5)).astype(np.float32) for size in (7, 4)]
  weight = rng.normal(size=5).astype(np.float32)

  @jax.jit
  def slopes(z, codes):
    of_sum = jax.grad(lambda *both: (rqvae.quantize(*both)[1] * weight).sum(), argnums=(0, 1))
    of_loss = jax.grad(lambda *both: rqvae.quantize(*both)[0].sum(), argnums=(0, 1))
    return of_sum(z, codes), of_loss(z, codes)

  through, (to_z, to_codes) = slopes(z, codes)
  np.testing.assert_allclose(through[0][0], weight, rtol=1e-6)
  assert not any(np.asarray(table).any() for table in through[1])
  _, _, numbers = by_hand(np.asarray(z), [np.asarray(table) for table in codes])
  residual, pull = np.asarray(z)[0], np.zeros(5)
  for level, number in enumerate(numbers[0]):
    error = residual - np.asarray(codes[level])[number]
    pull += 2 * 0.25 * error
    np.testing.assert_allclose(to_codes[level][number], -2 * error, rtol=1e-4, atol=1e-6)
    assert np.count_nonzero(np.asarray(to_codes[level]).any(axis=1)) == 1
    residual = error
  np.testing.assert_allclose(to_z[0], pull, rtol=1e-4, atol=1e-6)


# Its steps are held exactly by `test_rqvae_formulas`, and what a fit is good for by the tokenizer.
@pytest.mark.long
def test_it_finds_clusters_and_uses_its_codes(monkeypatch):
  monkeypatch.setattr(rqvae, "BATCH", 256)
  rng = np.random.default_rng(2)
  group = rng.integers(6, size=900)
  x = (0.2 * rng.normal(size=(6, 20))[group] + 0.05 * rng.normal(size=(900, 20))).astype(np.float32)
  encoder, codes = rqvae.fit(x, (9, 8), width=4, steps=300, seed=0)
  z = encoder(x)
  assert z.shape == (900, 4) and [table.shape for table in codes] == [(9, 4), (8, 4)]
  _, total, chosen, _ = rqvae.quantize(jnp.asarray(z), [jnp.asarray(table) for table in codes])
  purest = sum(
    np.bincount(group[np.asarray(chosen[0]) == code]).max()
    for code in set(np.asarray(chosen[0]).tolist())
  )
  assert purest / 900 > 0.9
  assert len(set(np.asarray(chosen[1]).tolist())) == 8
  assert np.square(z - total).sum() < 0.1 * np.square(z - z.mean(axis=0)).sum()


@pytest.fixture(scope="module")
def fitted(shop):
  ads, events = shop
  vectors = np.random.default_rng(5).normal(size=(len(ads), 24)).astype(np.float32)
  ads = dataclasses.replace(ads, vectors=vectors)
  return ads, events, *tokenizer.fit(ads, events, SETTINGS, seed=0)


def test_the_tokenizer_takes_its_codes_with_the_balance_of_k_means(fitted):
  ads, events, tok, codes = fitted
  assert [table.shape for table in tok.centroids] == [(8, 6), (4, 6)] and tok.width == 24
  for level in (0, 1):
    assert np.bincount(codes[:, level]).max() <= 1.2 * 120 / SETTINGS.codebooks[level]
  assert len(np.unique(codes, axis=0)) == 120
  np.testing.assert_array_equal(tokenizer.fit(ads, events, SETTINGS, seed=0)[1], codes)
  nearest = np.asarray(
    rqvae.quantize(jnp.asarray(tok.latent(tok.embed(ads))), list(tok.centroids))[2]
  ).T
  staying = dataclasses.replace(
    tok, config=dataclasses.replace(SETTINGS, last_level="hash")
  )  # no ad moves for room
  np.testing.assert_array_equal(staying.encode(ads)[:, :2], nearest)
  assert (staying.encode(ads)[:, 0] == codes[:, 0]).mean() > 0.6
  with pytest.raises(schema.DataError, match="5 wide; the tokenizer was fitted on 24"):
    tok.encode(dataclasses.replace(ads, vectors=ads.vectors[:, :5]))


@pytest.mark.parametrize(
  "changed", [{}, pytest.param({"cooccurrence_width": 8}, marks=pytest.mark.long)]
)
def test_it_is_saved_with_the_tokenizer(fitted, tmp_path, changed):
  ads, events, tok, _ = fitted
  if changed:
    tok, _ = tokenizer.fit(ads, events, dataclasses.replace(SETTINGS, **changed), seed=0)
  tok.save(str(tmp_path))
  loaded = tokenizer.Tokenizer.load(str(tmp_path))
  assert loaded.config == tok.config
  np.testing.assert_array_equal(loaded.encode(ads), tok.encode(ads))
  whole = tok.latent.params
  damages = (
    {"latent": rqvae.Encoder({**whole, "out/bias": np.zeros(5, np.float32)})},
    {
      "latent": rqvae.Encoder(
        {name: value for name, value in whole.items() if name != "hidden/kernel"}
      )
    },
    {"centroids": tuple(table[:, :5] for table in tok.centroids)},
  )
  for damage in damages:
    dataclasses.replace(tok, **damage).save(str(tmp_path))
    with pytest.raises(schema.DataError, match="the RQ-VAE's parameters are not those of width 6"):
      tokenizer.Tokenizer.load(str(tmp_path))
