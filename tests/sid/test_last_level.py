"""The last code of a UA-SID: hash and walk by loops, moves from full prefixes, and the shipped
catalogue's codes.
"""

import dataclasses
import hashlib
import itertools

import numpy as np
import pytest

from gr4ad_jax import config
from gr4ad_jax.builders.online_retail import OnlineRetail
from gr4ad_jax.data import schema
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.sid import last_level, report, tokenizer


def hash_of(text):
  """The low 8 bytes of BLAKE2b, as a number."""
  return sum(
    byte << 8 * place
    for place, byte in enumerate(hashlib.blake2b(text.encode(), digest_size=8).digest())
  )


def by_loops(ads, prefix_NP, size, taken=(), centroids=None, vectors_ND=None):
  """Probing as its docstring says it: who has room in the own prefix first, then the others by
  the nearest way.
  """
  taken = set(taken)
  taken_at_first = len(taken)
  names = list(zip(ads.ad_id, ads.account_id, ads.conversion_type, strict=True))
  keys = ["\x1f".join(map(str, name)) for name in names]
  order = sorted(range(len(names)), key=lambda row: (hash_of(str(ads.ad_id[row])), keys[row]))
  codes, without = {}, []

  def placed(row, prefix):
    for step in range(size):
      code = (*prefix, (hash_of(keys[row]) + step) % size)
      if code not in taken:
        taken.add(code)
        codes[row] = code
        return True
    return False

  for row in order:
    if not placed(row, tuple(prefix_NP[row].tolist())):
      without.append(row)
  for row in without:
    home = tuple(prefix_NP[row].tolist())
    codes[row] = (*home, hash_of(keys[row]) % size)
    if centroids is None:
      continue

    def rank(prefix, row=row, home=home):
      shared = sum(
        1
        for _ in itertools.takewhile(
          lambda pair: pair[0] == pair[1], zip(prefix, home, strict=True)
        )
      )
      residual, way = vectors_ND[row].astype(np.float64), []
      for code, table in zip(prefix, centroids, strict=True):
        way += [round(float(((residual - table[code]) ** 2).sum()), 9), code]
        residual = residual - table[code]
      return (-shared, *way)

    every = sorted(itertools.product(*(range(len(table)) for table in centroids)), key=rank)
    next((True for prefix in every if placed(row, prefix)), None)
  assert len(taken) <= taken_at_first + len(names)
  return np.array([codes[row] for row in range(len(names))])


@pytest.mark.parametrize("num", [20, 61, 75, 90])  # 3 * 4 * 6 = 72 UA-SIDs
@pytest.mark.parametrize("own", [False, True])  # whether some are taken already
def test_ads_of_a_full_prefix_move_to_the_nearest_with_room(make, num, own):
  rng = np.random.default_rng(num)
  ads = make[0](num)
  centroids = [rng.normal(size=(size, 2)) for size in (3, 4)]
  vectors_ND = rng.normal(size=(num, 2))
  prefix_NP = np.stack(
    [rng.choice(3, num, p=[0.8, 0.2, 0]), rng.choice(4, num, p=[0.6, 0.4, 0, 0])], axis=1
  )
  existing = np.array([[0, 0, 3], [0, 2, 1], [0, 2, 2], [2, 1, 0]]) if own else None
  taken = () if existing is None else set(map(tuple, existing.tolist()))
  asked = []

  def vector_of(row):
    asked.append(row)
    return vectors_ND[row]

  found = last_level.complete(ads, prefix_NP, 6, "probe", existing, (centroids, vector_of))
  expected = by_loops(ads, prefix_NP, 6, taken, centroids, vectors_ND)
  np.testing.assert_array_equal(found, expected)
  assert found.dtype == np.int32
  stays = last_level.complete(ads, prefix_NP, 6, "probe", existing)
  np.testing.assert_array_equal(stays, by_loops(ads, prefix_NP, 6, taken))
  kept = np.setdiff1d(np.arange(num), asked)
  np.testing.assert_array_equal(found[kept], stays[kept])  # who had a code of its own keeps it
  distinct = len({tuple(code) for code in found.tolist()} | set(taken))
  assert distinct == min(num + len(taken), 72)  # one UA-SID an ad while codes are free


def test_a_full_prefix_beside_no_vectors_keeps_the_hash(make):
  ads = make[0](9)
  found = last_level.complete(ads, np.zeros((9, 1), np.int32), 4, "probe")
  hashed = last_level.complete(ads, np.zeros((9, 1), np.int32), 4, "hash")
  np.testing.assert_array_equal(
    hashed[:, 1], [hash_of(f"ad{n}\x1fshop{n % 3}\x1f") % 4 for n in range(9)]
  )
  order = sorted(range(9), key=lambda n: hash_of(f"ad{n}"))
  assert sorted(found[order[:4], 1].tolist()) == [0, 1, 2, 3]
  np.testing.assert_array_equal(found[order[4:]], hashed[order[4:]])


def shop_of_one_text(make, num, codebooks, mode="probe", **more):
  """Ads with one text, and their tokenizer and UA-SIDs."""
  ads, events = make[0](num, vectors=np.ones((num, 4), np.float32)), make[1]([[0, 1]])
  sid = config.SidConfig(
    codebooks=codebooks, tower_steps=0, kmeans_iterations=2, last_level=mode, **more
  )
  return ads, events, *tokenizer.fit(ads, events, sid, seed=0)


RQVAE = {"quantizer": "rqvae", "rqvae_width": 3, "rqvae_steps": 2}


# That equal vectors go through an RQ-VAE is held by `test_rqvae_formulas`, moves by the test below.
@pytest.mark.parametrize("more", [{}, pytest.param(RQVAE, marks=pytest.mark.long)])
def test_one_text_for_all_ads_gives_each_a_uasid(make, more):
  ads, _, fitted, codes_NT = shop_of_one_text(make, 100, (4, 4, 8), **more)
  assert len(np.unique(codes_NT, axis=0)) == 100
  new = dataclasses.replace(ads, ad_id=np.char.add("new", ads.ad_id))
  later = fitted.encode(new, codes_NT)
  assert len(np.unique(np.concatenate([codes_NT, later]), axis=0)) == 128  # all there are
  assert report.sharing(SidIndex.build(codes_NT, (4, 4, 8)), "probe") is None


@pytest.mark.parametrize("more", [{}, {"quantizer": "rqvae", "rqvae_width": 3, "rqvae_steps": 30}])
def test_each_ad_that_moves_goes_by_its_own_vector(make, more):
  """Ads of different vectors: those of a full prefix move as the loops move them, when fitted
  and when they are new.
  """
  given_ND = np.random.default_rng(3).normal(size=(72, 5)).astype(np.float32)
  unit_ND = given_ND / np.linalg.norm(given_ND, axis=1, keepdims=True)
  old = make[0](58, vectors=given_ND[:58])
  new = dataclasses.replace(
    make[0](14, vectors=given_ND[58:]), ad_id=np.array([f"new{n}" for n in range(14)])
  )
  sid = config.SidConfig(
    codebooks=(3, 4, 6), tower_steps=0, kmeans_iterations=2, **more
  )  # 72 UA-SIDs
  hashing = dataclasses.replace(
    sid, last_level="hash"
  )  # never moves an ad, so it shows the prefixes from before
  fitted, codes_NT = tokenizer.fit(old, make[1]([[0, 1]]), sid, seed=0)
  _, hashed_NT = tokenizer.fit(old, make[1]([[0, 1]]), hashing, seed=0)
  later_NT = fitted.encode(new, existing=codes_NT)
  stays_NT = dataclasses.replace(fitted, config=hashing).encode(new)
  vectors_ND = fitted.quantized(unit_ND)
  taken = set(map(tuple, codes_NT.tolist()))
  for ads, found_NT, before_NT, own_ND, used in (
    (old, codes_NT, hashed_NT, vectors_ND[:58], ()),
    (new, later_NT, stays_NT, vectors_ND[58:], taken),
  ):
    prefix_NP = before_NT[:, :-1]
    np.testing.assert_array_equal(
      found_NT, by_loops(ads, prefix_NP, 6, used, fitted.centroids, own_ND)
    )
    moved = np.flatnonzero((found_NT[:, :-1] != prefix_NP).any(axis=1))
    by_the_first_ad = np.broadcast_to(own_ND[:1], own_ND.shape)
    other_NT = by_loops(ads, prefix_NP, 6, used, fitted.centroids, by_the_first_ad)
    assert (found_NT[moved] != other_NT[moved]).any()  # some move, and whose vector it is matters


def test_ads_that_share_are_told_with_the_reason(make):
  for mode, num, words in (
    (
      "hash",
      60,
      "--last_level=hash does not look whether a code is taken; --last_level=probe does",
    ),
    ("probe", 60, "--codebooks=2,3,4 have 24 UA-SIDs for 60 ads: take larger ones"),
  ):
    *_, codes_NT = shop_of_one_text(make, num, (2, 3, 4), mode)
    _, count = np.unique(codes_NT, axis=0, return_counts=True)
    shared = sum(ads for ads in count.tolist() if ads > 1)
    expected = f"{shared} of 60 ads share their UA-SID with others: {words}"
    assert report.sharing(SidIndex.build(codes_NT, (2, 3, 4)), mode) == expected and shared > 30
  older = SidIndex.build(np.array([[0, 1], [0, 1], [1, 0]]), (2, 2))
  assert report.sharing(older, "probe").startswith(
    "2 of 3 ads share their UA-SID with others: their prefixes had no"
  )
  full = SidIndex.build(np.array([[0, 1], [0, 1], [1, 0], [1, 1]]), (2, 2))
  assert "no free code" in report.sharing(
    full, "probe"
  )  # as many ads as UA-SIDs: they would be enough


def test_the_shipped_catalogue_keeps_its_codes():
  """Digests of what earlier versions gave it under prefixes of 23 and 24 ads: saved runs and
  live ads must agree.
  """
  ads: schema.AdTable = OnlineRetail.read(config.DataConfig()).ads
  row = np.arange(len(ads))
  prefix_NP = np.stack([row % 160, row * 0], axis=1).astype(np.int32)

  def never(row):
    raise AssertionError(f"row {row} was to move")

  digests = [
    hashlib.sha256(
      last_level.complete(
        ads, prefix_NP, 24, mode, nearby=([np.zeros((160, 1)), np.zeros((64, 1))], never)
      )
      .astype("<i4")
      .tobytes()
    ).hexdigest()
    for mode in ("hash", "probe")
  ]
  assert digests == [
    "6b505f87aed8f6401c42cc1cfe1e9510cfbdee9593004035a96cdd38fca7b9ee",
    "0e1895f666680140e05d52a6726215e7e416b926015d30a79df0711b05ad6e46",
  ]
