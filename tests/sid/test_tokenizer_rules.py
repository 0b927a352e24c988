"""How a tokenizer is put together: which pairs, seeds and residuals each part is given, and the
report's figures.
"""

import dataclasses
import json
import math
import types

import numpy as np
import pytest

from gr4ad_jax import config
from gr4ad_jax.data import schema
from gr4ad_jax.sid import encoders, kmeans, report, tokenizer, tower
from gr4ad_jax.swing import by_config, cooccurrence, swing

SETTINGS = config.SidConfig(codebooks=(5, 4, 3, 16), tower_steps=0, kmeans_iterations=2)


@pytest.fixture(scope="module")
def parted(make):
  """Forty ads with vectors, and visits of which some are not of training."""
  rng = np.random.default_rng(0)
  ads = make[0](40, vectors=rng.normal(size=(40, 6)).astype(np.float32))
  baskets = [rng.choice(36, 4, replace=False).tolist() for _ in range(60)] + [[36, 37, 38]] * 4
  return ads, make[1](baskets, split=[0] * 50 + [1] * 10 + [2] * 4)


def test_each_level_codes_what_the_levels_before_leave(parted):
  ads, events = parted
  heard, said = [], []
  told = lambda *now: heard.append(now)  # noqa: E731
  log = type("Log", (), {"info": staticmethod(lambda text, *values: said.append(text % values))})
  fitted, codes_NT = tokenizer.fit(ads, events, SETTINGS, seed=3, told=told, log=log)
  rest = ads.vectors / np.linalg.norm(ads.vectors, axis=1, keepdims=True)
  for level, size in enumerate((5, 4, 3)):
    centroids, code = kmeans.balanced_kmeans(rest, size, iterations=2, seed=3 + level)
    np.testing.assert_array_equal(codes_NT[:, level], code)
    np.testing.assert_array_equal(fitted.centroids[level], centroids)
    rest = rest - centroids[code]
    most = max(list(code).count(c) for c in range(size))
    used = len(set(code.tolist()))
    assert (
      said[level] == f"level {level + 1}: {used} of {size} codes used, {most} ads in the largest"
    )
  assert {what for what, _, _ in heard} == {f"k-means, level {level}" for level in (1, 2, 3)}
  assert fitted.seed == 3 and fitted.codebooks == (5, 4, 3, 16) and fitted.width == 6


def test_the_log_counts_codes_that_are_used(parted, monkeypatch):
  def one_code(rest, size, **_):
    return np.zeros((size, 6), np.float32), np.full(rest.shape[0], 2)

  monkeypatch.setattr(kmeans, "balanced_kmeans", one_code)
  said = []
  log = type("Log", (), {"info": staticmethod(lambda text, *values: said.append(text % values))})
  tokenizer.fit(*parted, SETTINGS, seed=3, log=log)
  assert said[1] == "level 2: 1 of 4 codes used, 40 ads in the largest"


def test_the_tower_learns_nine_tenths_of_the_pairs_of_training(parted, monkeypatch):
  ads, events = parted
  sid = dataclasses.replace(
    SETTINGS, tower_steps=2, tower_width=4, tower_temperature=0.3, swing_neighbors=5
  )
  given = []
  monkeypatch.setattr(
    tower, "fit_tower", lambda *a, **k: given.append((a, k)) or tower.Tower({}, (0.0, 1.0))
  )
  monkeypatch.setattr(tower.Tower, "embed", lambda self, text, ads: np.asarray(text[:]))
  monkeypatch.setattr(
    tokenizer.kmeans,
    "balanced_kmeans",
    lambda x, size, **_: (np.zeros((size, 6), np.float32), np.arange(40) % size),
  )
  fitted, _ = tokenizer.fit(ads, events, sid, seed=3)
  (text, _, pairs), options = given[0]
  whole = swing.fit_swing(events, 40, neighbors=5, seed=3)
  expected, held_out = whole.split(0.1, 3)
  np.testing.assert_array_equal(pairs.ads_NK, expected.ads_NK)
  assert (held_out.ads_NK >= 0).any() and pairs.ads_NK.max() < 36
  np.testing.assert_array_equal(text, encoders.encode(ads, ""))
  assert options == {"width": 4, "steps": 2, "temperature": 0.3, "seed": 3, "log": None}
  assert fitted.tower is not None


def test_co_occurrence_stands_beside_content_and_is_bridged_from_it(parted):
  ads, events = parted
  sid = dataclasses.replace(SETTINGS, cooccurrence_width=3, cooccurrence_window=7)
  fitted, codes_NT = tokenizer.fit(ads, events, sid, seed=0)
  train = np.asarray(events.split) == 0
  taken = cooccurrence.ppmi_vectors(events.user[train], events.ad[train], 40, 3, 7)
  known = [bool(vector.any()) for vector in taken]
  assert 30 < sum(known) < 40  # those of the last visits were never taken in training
  unit = ads.vectors / np.linalg.norm(ads.vectors, axis=1, keepdims=True)
  bridge = cooccurrence.ridge(unit[known], taken[known])
  np.testing.assert_allclose(fitted.bridge, bridge, rtol=1e-5)
  both = np.array(
    [[*unit[n], *(taken[n] if known[n] else unit[n] @ bridge)] for n in range(40)], np.float32
  )
  np.testing.assert_array_equal(
    codes_NT[:, 0], kmeans.balanced_kmeans(both, 5, iterations=2, seed=0)[1]
  )
  np.testing.assert_allclose(
    fitted.embed(ads), np.concatenate([unit, unit @ bridge], axis=1), atol=1e-6
  )


def test_settings_that_cannot_be_fitted_are_named(parted):
  for changed, words in (
    ({"codebooks": (8, 0)}, r"codebooks \(8, 0\): two levels or more"),
    ({"codebooks": (8,)}, r"codebooks \(8,\): two levels or more"),
    (
      {"cooccurrence_width": 41},
      "--cooccurrence_width=41 is not allowed: below 40, the number of ads",
    ),
  ):
    with pytest.raises(config.ConfigError, match=words):
      tokenizer.fit(*parted, dataclasses.replace(SETTINGS, **changed), seed=0)
  one_code = dataclasses.replace(SETTINGS, codebooks=(1, 64), cooccurrence_width=39)
  assert tokenizer.fit(*parted, one_code, seed=0)[1].shape == (40, 2)


def test_neighbours_of_other_ads_are_refused(parted, tmp_path):
  path = str(tmp_path / "n.npz")
  sid = dataclasses.replace(SETTINGS, swing_path=path)
  for highest, refused in ((39, False), (40, True)):
    ads_NK = np.full((40, 2), -1, np.int32)
    ads_NK[4, 0] = highest
    swing.Neighbors(ads_NK, (ads_NK >= 0).astype(np.float32)).save(
      path, by_config.swing_settings(sid, 0)
    )
    if refused:
      with pytest.raises(schema.DataError, match="neighbours of 40 ads; the table has 40"):
        by_config.co_occurrence(parted[1], 40, sid, 0)
    else:
      assert by_config.co_occurrence(parted[1], 40, sid, 0).ads_NK[4, 0] == 39
  swing.Neighbors(ads_NK, np.zeros((40, 3), np.float32)).save(
    path, by_config.swing_settings(sid, 0)
  )
  with pytest.raises(
    schema.DataError, match=r"neighbours of shape \(40, 2\), similarities \(40, 3\)"
  ):
    by_config.co_occurrence(parted[1], 40, sid, 0)


def quality_by_loops(codes, codebooks):
  """The figures of UA-SIDs, counted one by one."""
  rows = [tuple(row) for row in codes.tolist()]
  alone = sum(rows.count(row) == 1 for row in rows)
  found = {
    "items_per_sid": len(rows) / len(set(rows)),
    "collision_rate": (len(rows) - alone) / len(rows),
    "utilisation": len(set(rows)) / math.prod(codebooks),
    "most_in_prefix": max([row[:-1] for row in rows].count(row[:-1]) for row in rows),
    "levels": [],
  }
  for level, size in enumerate(codebooks):
    share = [sum(row[level] == code for row in rows) / len(rows) for code in range(size)]
    bits = -sum(s * math.log2(s) for s in share if s)
    found["levels"].append({
      "codes": size, "used": sum(s > 0 for s in share), "entropy_bits": pytest.approx(bits),
      "perplexity": pytest.approx(2**bits), "largest_over_mean": pytest.approx(max(share) * size),
    })  # fmt: skip
  return found


def test_code_figures_are_those_of_counting():
  rng = np.random.default_rng(0)
  first = rng.choice(5, 60, p=[0.5, 0.2, 0.2, 0.1, 0])
  codes = np.stack([first, rng.integers(3, size=60), rng.integers(7, size=60)], axis=1)
  assert report.code_quality(codes, (5, 3, 7)) == quality_by_loops(codes, (5, 3, 7))
  one = report.code_quality(codes[:1], (5, 3, 7))["levels"][0]
  assert (one["entropy_bits"], one["perplexity"]) == (0, 1) and math.copysign(
    1, one["entropy_bits"]
  ) == 1


def recall_by_loops(vectors, truth, known, queries, cut):
  """Mean over queries with a neighbour of those found among the first `cut` over those there
  are, at most `cut`.
  """
  recalls = []
  for query in queries:
    wanted = set(truth[query].tolist()) - {-1}
    left_out = {int(query)} | (set() if known is None else set(known[query].tolist()))
    ranked = sorted(
      set(range(len(vectors))) - left_out, key=lambda ad: -float(vectors[query] @ vectors[ad])
    )
    if wanted:
      recalls.append(len(set(ranked[:cut]) & wanted) / min(cut, len(wanted)))
  return np.mean(recalls), len(recalls)


def test_a_second_tower_is_fitted_without_the_unseen_ads(shop, monkeypatch):
  ads, events = shop
  text = np.random.default_rng(5).normal(size=(120, 24)).astype(np.float32)
  text /= np.linalg.norm(text, axis=1, keepdims=True)
  whole = swing.fit_swing(events, 120, seed=2)
  seen = []

  def fit_tower(text_ND, some, neighbors, **options):
    seen.append((text_ND, len(some), neighbors.ads_NK, options["seed"]))
    return types.SimpleNamespace(embed=lambda text_ND, ads: -text_ND)

  monkeypatch.setattr(report.tower, "fit_tower", fit_tower)
  fitted = types.SimpleNamespace(seed=2, config=config.SidConfig(tower_width=16))
  found = report._unseen_recall(fitted, ads, whole, text)
  hidden = np.random.default_rng(2).random(120) < 0.1
  shown = np.flatnonzero(~hidden)
  ((some, number, near, seed),) = seen
  np.testing.assert_array_equal(some, text[shown])
  np.testing.assert_array_equal(near, whole.among(shown).ads_NK)
  assert (number, seed) == (len(shown), 2)
  recall, queries = recall_by_loops(text, whole.ads_NK, None, np.flatnonzero(hidden), 5)
  assert found["content"]["recall@5"] == pytest.approx(recall)
  assert found["content"]["queries"] == found["trained"]["queries"] == queries > 0


@pytest.mark.long
def test_a_report_s_figures_are_those_of_loops(shop):
  ads, events = shop
  rng = np.random.default_rng(5)
  ads = dataclasses.replace(ads, vectors=rng.normal(size=(120, 24)).astype(np.float32))
  sid = config.SidConfig(codebooks=(8, 4, 16), tower_width=16, tower_steps=60)
  fitted, codes_NT = tokenizer.fit(ads, events, sid, seed=2)
  found = report.quality_report(fitted, ads, events, codes_NT)
  whole = swing.fit_swing(events, 120, seed=2)
  pairs, held_out = whole.split(0.1, 2)
  content = ads.vectors / np.linalg.norm(ads.vectors, axis=1, keepdims=True)
  everyone = np.arange(120)
  for name, vectors in (("content", content), ("trained", fitted.embed(ads))):
    for cut in (1, 5, 10):
      recall, queries = recall_by_loops(vectors, held_out.ads_NK, pairs.ads_NK, everyone, cut)
      assert found["item_recall"][name][f"recall@{cut}"] == pytest.approx(recall)
      assert found["item_recall"][name]["queries"] == queries
  hidden = np.random.default_rng(2).random(120) < 0.1
  shown = np.flatnonzero(~hidden)
  columns = {f.name: getattr(ads, f.name) for f in dataclasses.fields(ads)}
  shown_ads = schema.AdTable(
    **{name: None if column is None else column[shown] for name, column in columns.items()}
  )
  options = {"width": 16, "steps": 60, "temperature": 0.07, "seed": 2}
  second = tower.fit_tower(content[shown], shown_ads, whole.among(shown), **options)
  for name, vectors in (("content", content), ("trained", second.embed(content, ads))):
    recall, queries = recall_by_loops(vectors, whole.ads_NK, None, np.flatnonzero(hidden), 5)
    assert found["unseen_ads"][name]["recall@5"] == pytest.approx(recall)
    assert found["unseen_ads"][name]["queries"] == queries
  z = fitted.embed(ads)
  first = [
    min(range(8), key=lambda c, row=row: ((row - fitted.centroids[0][c]) ** 2).sum()) for row in z
  ]
  moved_NT = codes_NT.copy()
  moved_NT[::3, 0] = (moved_NT[::3, 0] + 1) % 8
  again = report.quality_report(fitted, ads, events, moved_NT, unseen=False)
  assert again["unseen_ads"] is None
  for one, codes in ((found, codes_NT), (again, moved_NT)):
    moved = [mine != code for mine, code in zip(first, codes[:, 0].tolist(), strict=True)]
    assert one["moved_by_balance"] == pytest.approx(sum(moved) / 120)
  assert again["moved_by_balance"] > 0.3
  assert found["codes"]["probe"] == quality_by_loops(codes_NT, (8, 4, 16))
  assert (found["ads"], found["codebooks"], found["last_level"]) == (120, [8, 4, 16], "probe")
  assert json.loads(json.dumps(found)) == found
  text = report.format_report(found)
  level = found["codes"]["probe"]["levels"][1]
  assert (
    f"| 2 | 4 | {level['used']} | {level['entropy_bits']:.2f} | {level['perplexity']:.1f} |" in text
  )
  recall = found["unseen_ads"]["trained"]
  figures = " | ".join(f"{recall[f'recall@{cut}']:.4f}" for cut in (1, 5, 10))
  assert f"| unseen ads, trained vectors | {recall['queries']} | {figures} |" in text
  hashed = found["codes"]["hash"]
  assert f"| collision rate | {hashed['collision_rate']:.2%} | 0.00% |" in text
  assert f"| most in a prefix | {hashed['most_in_prefix']} | {hashed['most_in_prefix']} |" in text


def test_a_report_without_a_query_has_no_recall(make):
  ads, events = (
    make[0](30, vectors=np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)),
    make[1]([[0, 1]]),
  )
  fitted, codes_NT = tokenizer.fit(
    ads, events, dataclasses.replace(SETTINGS, codebooks=(4, 3, 8)), seed=0
  )
  found = report.quality_report(fitted, ads, events, codes_NT)
  assert found["item_recall"] is None and found["unseen_ads"] is None
  assert "held-out pairs" not in report.format_report(found)


def test_recall_is_of_queries_in_several_parts():
  rng = np.random.default_rng(1)
  vectors = rng.normal(size=(1100, 3)).astype(np.float32)
  truth = np.full((1100, 2), -1)
  truth[1000:] = rng.integers(0, 1000, (100, 2))
  truth[:1000, 0] = np.argsort(-vectors[:1000] @ vectors.T + 1e9 * np.eye(1000, 1100), axis=1)[:, 0]
  found = report.item_recall(vectors, swing.Neighbors(truth, np.ones((1100, 2))))
  last = recall_by_loops(vectors, truth, None, range(1000, 1100), 1)[0]
  assert found["queries"] == 1100 and found["recall@1"] == pytest.approx((1000 + 100 * last) / 1100)
