import json
import os

import numpy as np
import pytest

from gr4ad_jax.evaluation import baselines, protocols, report_tables
from gr4ad_jax.studies import ablation_table
from tests.evaluation import loops
from tests.whole_files import assert_replaced_whole


def _padded(*lists):
  return np.array([row + [-1] * (50 - len(row)) for row in lists], np.int32)


GOOD, BAD = _padded([3, 0], [2]), _padded([1], [1, 2])


def test_results_have_the_agreed_layout(shop):
  found = report_tables.results(
    shop, "test", {"gr4ad": GOOD, "popularity": BAD}, skipped={"ease": "too large"}
  )
  assert (found["dataset"], found["split"], found["users"]) == ("online_retail", "test", 2)
  assert found["protocol"] == protocols.protocol_of("online_retail").text
  assert list(found["systems"]) == ["gr4ad", "popularity"]
  names = {f"{metric}@{k}" for metric in ("recall", "ndcg", "revenue") for k in (10, 50)}
  for row in found["systems"].values():
    assert list(row) == ["all", "again", "new"]
    for part in row.values():
      assert set(part) == names
      for score in part.values():
        assert set(score) == {"mean", "low", "high"}
        assert 0 <= score["low"] <= score["mean"] <= score["high"] <= 1
  assert found["systems"]["gr4ad"]["all"]["recall@10"] == {"mean": 1, "low": 1, "high": 1}
  assert found["systems"]["popularity"]["all"]["recall@10"]["mean"] == 0.5
  assert found["ahead"]["popularity"]["all"]["recall@10"]["mean"] == 0.5
  assert found["targets"]["again"] == {"count": 1 / 3, "value": pytest.approx(5 / 19, rel=0.02)}
  assert found["catalogue"]["gr4ad"]["coverage@10"] == pytest.approx(3 / 6)
  assert json.loads(json.dumps(found)) == found


def test_seeds_are_averaged(shop):
  found = report_tables.results(shop, "test", {"gr4ad": [GOOD, BAD], "popularity": BAD})
  assert found["seeds"] == {"gr4ad": 2, "popularity": 1}
  assert found["systems"]["gr4ad"]["all"]["recall@10"]["mean"] == pytest.approx((1 + 0.5) / 2)


def test_bad_rankings_name_their_system(shop):
  with pytest.raises(ValueError, match="system 'mine': rankings row 0 names ad 3 more than once"):
    report_tables.results(shop, "test", {"mine": _padded([3, 3], [2])})
  with pytest.raises(ValueError, match="no system"):
    report_tables.results(shop, "test", {})


def test_scores_do_not_depend_on_the_other_systems(shop):
  alone = report_tables.results(shop, "test", {"gr4ad": BAD})["systems"]["gr4ad"]
  together = report_tables.results(shop, "test", {"popularity": GOOD, "gr4ad": BAD})["systems"][
    "gr4ad"
  ]
  assert alone == together


def test_table_is_aligned_and_marks_the_best(shop):
  requests = protocols.eval_requests(shop, "test")
  ranked, _ = baselines.rank_all(baselines.Baselines(shop, requests), 50)
  found = report_tables.results(
    shop, "test", {"gr4ad": GOOD, **ranked}, skipped={"x": "no"}, seen={"gr4ad": "masked"}
  )
  text = report_tables.format_table(found)
  blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
  assert [len(block) for block in blocks] == 3 * [2 + 1 + len(ranked), 2 + len(ranked)]
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


@pytest.fixture(scope="module")
def rankings(bazaar):
  """Systems with one list, two seeds and three."""
  number = len(loops.baskets(bazaar, "test"))
  made = iter(range(9))
  return {name: [loops.random_rankings(next(made), number, 13, 50) for _ in range(runs)]
          for name, runs in (("gr4ad", 2), ("one", 1), ("three", 3))}  # fmt: skip


@pytest.mark.parametrize("seed", [0, 5])
def test_results_equal_a_loop_over_users_and_draws(bazaar, rankings, seed):
  given = {name: runs[0] if len(runs) == 1 else runs for name, runs in rankings.items()}
  settings = {"seed": seed} if seed else {}  # without a word the seed is 0
  found = report_tables.results(bazaar, "test", given, **settings)
  alone, minus = loops.scored(bazaar, "test", rankings, (10, 50), seed)
  names = [f"{metric}@{k}" for k in (10, 50) for metric in ("recall", "ndcg", "revenue")]
  for system in rankings:
    whole = found["systems"][system]["all"]
    assert list(whole) == names
    for metric in names:
      assert whole[metric] == pytest.approx(alone[system, metric], rel=1e-5), (system, metric)
  assert list(found["ahead"]) == ["one", "three"]
  for system in found["ahead"]:
    for metric in names:
      lead = minus("gr4ad", system, metric)
      ahead = found["ahead"][system]["all"][metric]
      assert ahead == pytest.approx(lead, rel=1e-4, abs=1e-9), (system, metric)
  popularity = [sum(ad == n for _, _, ad in loops.history(bazaar, "test")) for n in range(13)]
  for system, runs in rankings.items():
    each = [loops.spread(run, popularity, 10) | loops.spread(run, popularity, 50) for run in runs]
    mean = {name: sum(one[name] for one in each) / len(each) for name in each[0]}
    assert found["catalogue"][system] == pytest.approx(mean)
  assert found["seeds"] == {"gr4ad": 2, "one": 1, "three": 3}
  assert (found["users"], found["requests"]) == (6, 6)
  assert found["seen"] == dict.fromkeys(rankings, "left") and found["skipped"] == {}


def test_the_most_popular_tenth_is_that_of_lines(make_dataset):
  """Ad 1 has five events in one line, ad 0 two lines: ad 0 is the popular one."""
  rows = [(0, 0, 1, 1, "train")] * 5 + [
    (0, 1, 0, 1, "train"),
    (1, 2, 0, 1, "train"),
    (1, 3, 2, 1, "test"),
  ]
  dataset = make_dataset(rows, num_ads=3)
  found = report_tables.results(dataset, "test", {"mine": _padded([0])})
  assert found["catalogue"]["mine"]["top_decile@10"] == 1
  step = ablation_table.results(dataset, "test", {"mine": [_padded([0])]}, {})
  assert step["rows"]["mine"]["top_decile@10"] == 1


def test_a_behaviour_and_a_split_are_those_that_were_asked_for(bazaar):
  number = len(loops.baskets(bazaar, "valid", 2))
  assert number < len(loops.baskets(bazaar, "valid"))
  lists = np.tile(np.append(np.arange(13), np.full(37, -1)), (number, 1))
  found = report_tables.results(
    bazaar, "valid", {"mine": lists}, "purchase", seen={"mine": "biased"}
  )
  assert (found["split"], found["target_behavior"], found["requests"]) == (
    "valid",
    "purchase",
    number,
  )
  assert found["seen"] == {"mine": "biased"}
  assert found["systems"]["mine"]["all"]["recall@50"]["mean"] == 1
  assert found["ahead"] == {}


def test_a_list_shorter_than_the_deepest_cut_is_refused(shop):
  with pytest.raises(ValueError, match="system 'mine': rankings have 49 columns; a cut at 50"):
    report_tables.results(shop, "test", {"mine": GOOD[:, :49]})


FOUND = {
  "dataset": "shop",
  "split": "valid",
  "users": 1234,
  "protocol": "words",
  "skipped": {"ease": "too large"},
  "seeds": {"gr4ad": 3, "popularity": 1},
  "seen": {"gr4ad": "left", "popularity": "masked"},
  "systems": {
    "gr4ad": {
      "all": {
        "recall@10": {"mean": 0.5, "low": 0.25, "high": 1.0},
        "ndcg@10": {"mean": 0.1, "low": 0.0, "high": 0.2},
      },
      "new": {"recall@10": {"mean": 0.25, "low": 0.125, "high": 0.5}},
    },
    "popularity": {
      "all": {
        "recall@10": {"mean": 0.125, "low": 0.1, "high": 0.15},
        "ndcg@10": {"mean": 0.2, "low": 0.1, "high": 0.3},
      },
      "new": {"recall@10": {"mean": 0.0, "low": 0.0, "high": 0.0}},
    },
  },
  "ahead": {
    "popularity": {
      "all": {
        "recall@10": {"mean": 0.375, "low": 0.0001, "high": 0.85},
        "ndcg@10": {"mean": -0.1, "low": -0.3, "high": 0.0},
      },
      "new": {"recall@10": {"mean": 0.25, "low": 0.125, "high": 0.5}},
    }
  },
  "targets": {"all": {"count": 1.0, "value": 1.0}, "new": {"count": 0.6125, "value": 0.5}},
}
TEXT = """\
shop, valid: 1,234 users. Means with 95 % intervals; best in bold.

**all** All targets.

| system     | seeds | seen ads | recall@10                | ndcg@10                |
|------------|-------|----------|--------------------------|------------------------|
| gr4ad      | 3     | left     | **.5000** [.2500, 1.0000] | .1000 [.0000, .2000]     |
| popularity | 1     | masked   | .1250 [.1000, .1500]      | **.2000** [.1000, .3000] |

Paired differences, in bold where the whole interval is above 0.

| gr4ad minus | recall@10                     | ndcg@10                 |
|-------------|-------------------------------|-------------------------|
| popularity  | **+.3750** [+.0001, +.8500] | -.1000 [-.3000, +.0000] |

**new** Targets that are new to the user; the ads seen before are left out of every list. \
61.3% of the targets, 50.0% of the value.

| system     | seeds | seen ads | recall@10                |
|------------|-------|----------|--------------------------|
| gr4ad      | 3     | masked   | **.2500** [.1250, .5000] |
| popularity | 1     | masked   | .0000 [.0000, .0000]     |

Paired differences, in bold where the whole interval is above 0.

| gr4ad minus | recall@10                   |
|-------------|-----------------------------|
| popularity  | **+.2500** [+.1250, +.5000] |

Left out: ease: too large.

Protocol: words.
"""


def test_table_s_text_to_the_letter():
  def words(text):  # each row with its cells, whatever their padding, which another test looks at
    return [[cell.strip(" -") for cell in line.split("|")] for line in text.splitlines()]

  assert words(report_tables.format_table(FOUND)) == words(TEXT)


def test_columns_are_as_wide_as_their_widest_cell():
  assert report_tables.aligned([["a", "bb"], ["ccc", "d"], ["", "ee"]]) == [
    "| a   | bb |", "|-----|----|", "| ccc | d  |", "|     | ee |",
  ]  # fmt: skip


@pytest.mark.parametrize(
  ("value", "plain", "signed"),
  [
    (0.25, ".2500", "+.2500"),
    (-0.25, "-.2500", "-.2500"),
    (1, "1.0000", "+1.0000"),
    (10.5, "10.5000", "+10.5000"),
    (0, ".0000", "+.0000"),
  ],
)
def test_numbers_are_short(value, plain, signed):
  score = dict.fromkeys(("mean", "low", "high"), value)
  assert report_tables.cell(score) == f"{plain} [{plain}, {plain}]"
  assert report_tables.cell(score, True, signed=True) == f"**{signed}** [{signed}, {signed}]"


@pytest.mark.parametrize("write", ["json", "text"])
def test_files_are_replaced_whole(tmp_path, write):
  path = str(tmp_path / "new" / "file")
  put = {
    "json": lambda word: report_tables.write_json(path, {"a": word}),
    "text": lambda word: report_tables.write_text(path, word),
  }[write]
  assert_replaced_whole(path, lambda: put("one"), lambda: put("another"))
  with open(path) as file:
    assert file.read() == {"json": '{\n  "a": "another"\n}\n', "text": "another"}[write]


def test_a_path_without_a_folder_is_written_here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  report_tables.write_text("a.md", "a")
  report_tables.write_json("a.json", {})
  assert sorted(os.listdir()) == ["a.json", "a.md"]


def test_all_systems_that_are_best_stand_in_bold():
  """Equal numbers, not the same object: as read back from a file."""
  found = json.loads(
    json.dumps(FOUND | {"systems": {name: FOUND["systems"]["gr4ad"] for name in ("a", "b")}})
  )
  lines = report_tables.format_table(found).splitlines()
  assert [line.count("**") for line in lines if line.startswith(("| a  ", "| b  "))] == [4, 4, 2, 2]


def test_some_requests_are_scored_as_they_are_among_all(shop):
  one = protocols.eval_requests(shop, "test").take([0])
  found = report_tables.results(shop, "test", {"mine": GOOD[:1]}, requests=one)
  assert (found["users"], found["requests"]) == (1, 1)
  with pytest.raises(ValueError):
    report_tables.results(shop, "test", {"mine": GOOD}, requests=one)
