import json
import os

import numpy as np
import pytest

from gr4ad_jax.evaluation import baselines, protocols, report_tables


def _padded(*lists):
  return np.array([row + [-1] * (50 - len(row)) for row in lists], np.int32)


GOOD, BAD = _padded([3, 0], [2]), _padded([1], [1, 2])


def test_results_have_the_agreed_layout(shop):
  found = report_tables.results(shop, "test", {"gr4ad": GOOD, "popularity": BAD}, skipped={"ease": "too large"})
  assert (found["dataset"], found["split"], found["users"]) == ("online_retail", "test", 2)
  assert found["protocol"] == protocols.protocol_of("online_retail").text
  assert list(found["systems"]) == ["gr4ad", "popularity"]
  names = {f"{metric}@{k}" for metric in ("recall", "ndcg", "revenue") for k in (10, 50)}
  for row in found["systems"].values():
    assert set(row) == names
    for score in row.values():
      assert set(score) == {"mean", "low", "high"}
      assert 0 <= score["low"] <= score["mean"] <= score["high"] <= 1
  assert found["systems"]["gr4ad"]["recall@10"] == {"mean": 1, "low": 1, "high": 1}
  assert found["systems"]["popularity"]["recall@10"]["mean"] == 0.5
  assert found["ahead"]["popularity"]["recall@10"]["mean"] == 0.5
  assert found["catalogue"]["gr4ad"]["coverage@10"] == pytest.approx(3 / 6)
  assert json.loads(json.dumps(found)) == found


def test_seeds_are_averaged(shop):
  found = report_tables.results(shop, "test", {"gr4ad": [GOOD, BAD], "popularity": BAD})
  assert found["seeds"] == {"gr4ad": 2, "popularity": 1}
  assert found["systems"]["gr4ad"]["recall@10"]["mean"] == pytest.approx((1 + 0.5) / 2)


def test_bad_rankings_name_their_system(shop):
  with pytest.raises(ValueError, match="system 'mine': rankings row 0 names ad 3 more than once"):
    report_tables.results(shop, "test", {"mine": _padded([3, 3], [2])})
  with pytest.raises(ValueError, match="no system"):
    report_tables.results(shop, "test", {})


def test_scores_do_not_depend_on_the_other_systems(shop):
  alone = report_tables.results(shop, "test", {"gr4ad": BAD})["systems"]["gr4ad"]
  together = report_tables.results(shop, "test", {"popularity": GOOD, "gr4ad": BAD})["systems"]["gr4ad"]
  assert alone == together


def test_table_is_aligned_and_marks_the_best(shop):
  requests = protocols.eval_requests(shop, "test")
  ranked, _ = baselines.rank_all(shop, requests, 50)
  found = report_tables.results(shop, "test", {"gr4ad": GOOD, **ranked}, skipped={"x": "no"}, seen={"gr4ad": "masked"})
  text = report_tables.format_table(found)
  blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
  assert [len(block) for block in blocks] == [2 + 1 + len(ranked), 2 + len(ranked)]
  for block in blocks:
    assert len({len(line) for line in block}) == 1
  row = next(line for line in blocks[0] if line.startswith("| gr4ad"))
  assert "**1.0000** [1.0000, 1.0000]" in row
  assert "masked" in row
  assert "Left out: x: no." in text
  assert found["protocol"] in text


def test_table_needs_no_more_than_the_agreed_keys(shop):
  found = report_tables.results(shop, "test", {"gr4ad": GOOD})
  keys = ("dataset", "split", "protocol", "users", "systems")
  assert "| gr4ad" in report_tables.format_table({key: found[key] for key in keys})


def test_json_is_whole_or_absent(tmp_path):
  path = str(tmp_path / "eval" / "metrics.json")
  report_tables.write_json(path, {"a": 1})
  with pytest.raises(ValueError):
    report_tables.write_json(path, {"a": float("nan")})
  with open(path) as file:
    assert json.load(file) == {"a": 1}
  report_tables.write_json(path, {"a": 2})
  assert os.listdir(tmp_path / "eval") == ["metrics.json"]
