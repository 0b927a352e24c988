"""Fit, encode, probe, save and load of the UA-SID tokenizer."""

import dataclasses
import io
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr4ad_jax import config, files
from gr4ad_jax.data import schema
from gr4ad_jax.sid import encoders, last_level, report, tokenizer
from gr4ad_jax.swing import cooccurrence

SETTINGS = config.SidConfig(codebooks=(8, 4, 16), tower_width=16, tower_steps=60)


def with_vectors(ads, seed=5):
  """The ads with random content vectors."""
  return dataclasses.replace(
    ads, vectors=np.random.default_rng(seed).normal(size=(len(ads), 24)).astype(np.float32)
  )


@pytest.fixture(scope="module")
def fitted(shop):
  ads, events = shop
  ads = with_vectors(ads)
  return ads, events, *tokenizer.fit(ads, events, SETTINGS, seed=0)


def test_fit_gives_valid_balanced_distinct_codes(fitted):
  ads, _, tok, codes = fitted
  assert codes.shape == (120, 3) and codes.dtype == np.int32
  assert (codes >= 0).all() and (codes < SETTINGS.codebooks).all()
  for level in (0, 1):
    assert np.bincount(codes[:, level]).max() <= 1.2 * 120 / SETTINGS.codebooks[level]
  assert len(np.unique(codes, axis=0)) == 120
  assert tok.codebooks == (8, 4, 16)


def test_same_seed_same_codes(fitted):
  ads, events, _, codes = fitted
  np.testing.assert_array_equal(tokenizer.fit(ads, events, SETTINGS, seed=0)[1], codes)


def test_encode_is_the_nearest_path_and_mostly_the_fitted_one(fitted):
  ads, _, tok, codes = fitted
  encoded = dataclasses.replace(
    tok, config=dataclasses.replace(SETTINGS, last_level="hash")
  ).encode(ads)
  z = tok.embed(ads)
  first = np.argmin(((z[:, None] - tok.centroids[0]) ** 2).sum(axis=2), axis=1)
  np.testing.assert_array_equal(encoded[:, 0], first)
  rest = z - tok.centroids[0][first]
  np.testing.assert_array_equal(
    encoded[:, 1], np.argmin(((rest[:, None] - tok.centroids[1]) ** 2).sum(axis=2), axis=1)
  )
  assert (encoded[:, 0] == codes[:, 0]).mean() > 0.7


def test_the_report_tells_how_many_first_codes_balance_has_moved(fitted):
  ads, _, tok, codes = fitted
  z = tok.embed(ads)
  nearest = [
    min(range(8), key=lambda c, row=row: ((row - tok.centroids[0][c]) ** 2).sum()) for row in z
  ]
  others = codes.copy()
  others[::3, 0] = (others[::3, 0] + 1) % 8
  for found in (codes, others):
    moved = [mine != code for mine, code in zip(nearest, found[:, 0].tolist(), strict=True)]
    assert report._moved(tok, z, found) == pytest.approx(sum(moved) / 120)
  assert sum(moved) > 36


def test_new_ads_keep_clear_of_the_old(fitted, make):
  ads, _, tok, codes = fitted
  new = dataclasses.replace(
    ads, ad_id=np.char.add("new", ads.ad_id)
  )  # the same content, advertised anew
  encoded = tok.encode(new, codes)
  taken = set(map(tuple, codes.tolist()))
  assert not taken & set(map(tuple, encoded.tolist())) and len(np.unique(encoded, axis=0)) == 120
  size = np.unique(np.concatenate([codes, encoded])[:, :2], axis=0, return_counts=True)[1]
  assert size.max() == 16  # some prefix is full, and holds no more
  below = {
    prefix: {code[-1] for code in taken if code[:-1] == prefix}
    for prefix in {code[:-1] for code in taken}
  }
  np.testing.assert_array_equal(tok.encode(new, lambda prefix: below.get(prefix, set())), encoded)
  one = tok.encode(
    dataclasses.replace(make[0](1), vectors=new.vectors[:1], ad_id=np.array(["solo"])), codes
  )
  assert one.shape == (1, 3)


@settings(max_examples=50, deadline=None)
@given(
  prefixes=st.lists(st.integers(0, 3), min_size=1, max_size=40),
  size=st.integers(1, 9),
  seed=st.integers(0, 99),
)
def test_probing_fills_a_prefix_before_it_collides(make, prefixes, size, seed):
  ads = make[0](len(prefixes))
  prefix = np.asarray(prefixes, np.int32)[:, None]
  hashed = last_level.complete(ads, prefix, size, "hash")
  probed = last_level.complete(ads, prefix, size, "probe")
  for value in set(prefixes):
    codes = probed[prefix[:, 0] == value, 1]
    assert len(np.unique(codes)) == min(len(codes), size)
    assert len(np.unique(hashed[prefix[:, 0] == value, 1])) <= len(np.unique(codes))
  order = np.random.default_rng(seed).permutation(len(prefixes))
  columns = {f.name: getattr(ads, f.name) for f in dataclasses.fields(ads)}
  shuffled = schema.AdTable(**{k: v if v is None else v[order] for k, v in columns.items()})
  np.testing.assert_array_equal(
    last_level.complete(shuffled, prefix[order], size, "probe"), probed[order]
  )


def test_hash_is_of_business_features_and_never_changes(make):
  ads = make[0](2, ad_id=np.array(["a", "a"]), account_id=np.array(["x", "y"]))
  codes = last_level.complete(ads, np.zeros((2, 1), np.int32), 1 << 20, "hash")
  assert codes[0, 1] != codes[1, 1]
  assert (
    last_level.stable_hash("a") == 0x2F42665B399EF840
  )  # else saved indices and new ads would disagree


def test_existing_codes_of_another_depth_are_refused(make):
  with pytest.raises(ValueError, match=r"\[N, 2\]"):
    last_level.complete(
      make[0](1), np.zeros((1, 1), np.int32), 4, "probe", np.zeros((3, 3), np.int32)
    )


def test_without_tower_the_content_vectors_serve(fitted):
  ads, events, _, _ = fitted
  plain = dataclasses.replace(SETTINGS, tower_steps=0, last_level="hash")
  tok, codes = tokenizer.fit(ads, events, plain, seed=0)
  assert tok.tower is None
  np.testing.assert_allclose(tok.embed(ads), encoders.encode(ads, ""), rtol=1e-5)
  np.testing.assert_array_equal(codes, last_level.complete(ads, codes[:, :2], 16, "hash"))
  narrow = dataclasses.replace(ads, vectors=ads.vectors[:, :5])
  with pytest.raises(schema.DataError, match="5 wide"):
    tok.encode(narrow)


@pytest.mark.parametrize("window", [50, 1])
def test_co_occurrence_decides_codes_where_content_says_nothing(fitted, window):
  ads, events, _, _ = fitted
  blind = dataclasses.replace(ads, vectors=np.ones_like(ads.vectors))
  joined = dataclasses.replace(
    SETTINGS, tower_steps=0, cooccurrence_width=16, cooccurrence_window=window
  )
  tok, codes = tokenizer.fit(blind, events, joined, seed=0)
  train = events.split == 0
  vectors = cooccurrence.ppmi_vectors(events.user[train], events.ad[train], len(ads), 16, window)
  within = sum(
    np.square(vectors[codes[:, 0] == c] - vectors[codes[:, 0] == c].mean(0)).sum()
    for c in set(codes[:, 0])
  )
  assert within < 0.8 * np.square(vectors - vectors.mean(0)).sum()
  np.testing.assert_allclose(
    tok.embed(blind)[:, 24:], tok.embed(blind)[:, :24] @ tok.bridge, rtol=1e-5
  )
  staying = dataclasses.replace(
    tok, config=dataclasses.replace(joined, last_level="hash")
  )  # no ad moves for room
  assert (
    len(set(staying.encode(dataclasses.replace(blind, ad_id=np.char.add("new", ads.ad_id)))[:, 0]))
    == 1
  )


def test_co_occurrence_vectors_are_fewer_than_the_ads(fitted):
  with pytest.raises(
    config.ConfigError, match="--cooccurrence_width=120 is not allowed: below 120"
  ):
    tokenizer.fit(
      fitted[0], fitted[1], dataclasses.replace(SETTINGS, cooccurrence_width=120), seed=0
    )


@pytest.mark.parametrize("changed", [{}, {"tower_steps": 0}, {"cooccurrence_width": 8}])
def test_save_then_load_is_the_same_tokenizer(fitted, tmp_path, changed):
  ads, events, tok, _ = fitted
  if changed:
    tok, _ = tokenizer.fit(ads, events, dataclasses.replace(SETTINGS, **changed), seed=0)
  tok.save(str(tmp_path))
  assert sorted(os.listdir(tmp_path)) == ["SHA256SUMS", "tokenizer.npz"]
  loaded = tokenizer.Tokenizer.load(str(tmp_path))
  assert loaded.config == tok.config and loaded.seed == tok.seed
  np.testing.assert_array_equal(loaded.encode(ads), tok.encode(ads))


def test_damaged_files_are_named(fitted, tmp_path):
  _, _, tok, _ = fitted
  with pytest.raises(FileNotFoundError, match="no tokenizer"):
    tokenizer.Tokenizer.load(str(tmp_path))
  tok.save(str(tmp_path))
  path = tmp_path / "tokenizer.npz"
  whole = path.read_bytes()
  for content in (whole[: len(whole) // 2], b"", b"not an archive"):
    path.write_bytes(content)
    with pytest.raises(
      files.DamagedError, match="tokenizer.npz is damaged: it is not what was written"
    ):
      tokenizer.Tokenizer.load(str(tmp_path))
  (tmp_path / "SHA256SUMS").unlink()  # as in an older run
  with pytest.raises(files.DamagedError, match="tokenizer.npz is damaged: no whole .npz file"):
    tokenizer.Tokenizer.load(str(tmp_path))
  with np.load(io.BytesIO(whole)) as saved:
    arrays = {name: saved[name] for name in saved.files if name != "tower/out/kernel"}
  np.savez(path, **arrays)
  with pytest.raises(schema.DataError, match="parameters are not those"):
    tokenizer.Tokenizer.load(str(tmp_path))
  np.savez(path, **{name: array for name, array in arrays.items() if name != "centroids/1"})
  with pytest.raises(schema.DataError, match=r"npz: not a whole tokenizer file \(KeyError"):
    tokenizer.Tokenizer.load(str(tmp_path))


def test_a_bridge_of_another_width_is_named(fitted, tmp_path):
  ads, events, _, _ = fitted
  tok, _ = tokenizer.fit(
    ads, events, dataclasses.replace(SETTINGS, tower_steps=0, cooccurrence_width=8), seed=0
  )
  for bridge, shape in (
    (None, r"\(\)"),
    (tok.bridge[:, :5], r"\(24, 5\)"),
    (tok.bridge[:7], r"\(7, 8\)"),
  ):
    dataclasses.replace(tok, bridge=bridge).save(str(tmp_path))
    with pytest.raises(
      schema.DataError, match=f"tokenizer.npz: a bridge of shape {shape}, --cooccurrence_width=8"
    ):
      tokenizer.Tokenizer.load(str(tmp_path))


def test_one_level_is_refused(shop):
  with pytest.raises(config.ConfigError, match="two levels"):
    tokenizer.fit(*shop, dataclasses.replace(SETTINGS, codebooks=(8,)), seed=0)
