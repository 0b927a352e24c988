"""The ablation's table: seeds averaged, steps paired with their parents, Markdown that names
what was chosen.
"""

import numpy as np
import pytest

from gr4ad_jax.evaluation import plots, protocols
from gr4ad_jax.studies import ablation_table
from tests.evaluation import loops
from tests.whole_files import assert_replaced_whole


@pytest.fixture(scope="module")
def found(make_dataset):
  rng = np.random.default_rng(0)
  rows = []
  for user in range(40):
    for visit in range(3):
      split = ("train", "valid", "test")[visit]
      rows += [
        (user, 3 * user + visit, int(ad), float(rng.exponential(5)), split)
        for ad in rng.choice(80, 3, False)
      ]
  dataset = make_dataset(rows, num_ads=80)
  requests = protocols.eval_requests(dataset, "test")
  none = np.stack([rng.permutation(80)[:50] for _ in range(len(requests))])
  best = none.copy()
  for r in range(len(requests)):
    own = requests.target_ad[requests.target_start[r] : requests.target_start[r + 1]]
    best[r] = np.concatenate([own, np.setdiff1d(np.arange(80), own)])[:50]
  rankings = {"base": [none, none[:, ::-1]], "vsl": [best, none], "rspo": [best, best]}
  return ablation_table.results(
    dataset, "test", rankings, {"base": "", "vsl": "base", "rspo": "vsl"}
  )


def test_rows_average_their_seeds_and_steps_subtract_the_parent(found):
  assert found["rows"]["rspo"]["recall@10"]["mean"] == pytest.approx(1)
  for metric in ("recall@10", "revenue@10", "value_ndcg@10"):
    vsl, rspo = (found["rows"][row][metric]["mean"] for row in ("vsl", "rspo"))
    assert vsl == pytest.approx(np.mean(found["by_seed"]["vsl"][metric]))
    assert found["steps"]["rspo"][metric]["mean"] == pytest.approx(rspo - vsl)
  assert found["steps"]["rspo"]["parent"] == "vsl" and "base" not in found["steps"]
  assert found["steps"]["rspo"]["recall@10"]["low"] > 0


def test_markdown_shows_rows_steps_and_what_was_tried(found, tmp_path):
  tried = {
    "rspo": [
      {"settings": {"preference_weight": w}, "recall@10": 0.1, "revenue@10": w / 10}
      for w in (1.0, 2.0)
    ]
  }
  chosen = {"rspo": {"preference_weight": 2.0}}
  full = found | {
    "seeds": [0, 1],
    "tried": tried,
    "chosen": chosen,
    "chosen_by": "valid revenue@10",
  }
  path = tmp_path / "ablation.md"
  ablation_table.write_markdown(full, str(path))
  text = path.read_text()
  assert "40 users, 2 seeds" in text and "coverage@10" in text and "value_ndcg@10" in text
  chosen_line = next(line for line in text.splitlines() if "preference_weight=2.0" in line)
  assert "chosen" in chosen_line and ".2000" in chosen_line
  assert any(line.startswith("| rspo ") and "**+" in line for line in text.splitlines())


def test_rows_and_steps_equal_a_loop_over_users_and_draws(bazaar):
  number = len(loops.baskets(bazaar, "test"))
  made = iter(range(20, 29))
  rankings = {name: [loops.random_rankings(next(made), number, 13, 50) for _ in range(runs)]
              for name, runs in (("base", 2), ("vsl", 1), ("rspo", 3))}  # fmt: skip
  parents = {"base": "", "vsl": "base", "rspo": "vsl", "absent": "base", "other": "absent"}
  table = ablation_table.results(bazaar, "test", rankings, parents)
  alone, minus = loops.scored(bazaar, "test", rankings, (10, 50))
  assert list(table["steps"]) == ["vsl", "rspo"]
  popularity = [sum(ad == n for _, _, ad in loops.history(bazaar, "test")) for n in range(13)]
  for name, runs in rankings.items():
    for metric in {metric for _, metric in alone}:
      assert table["rows"][name][metric] == pytest.approx(alone[name, metric], rel=1e-4), (
        name,
        metric,
      )
      each = [loops.mean(bazaar, "test", run, metric) for run in runs]
      assert table["by_seed"][name][metric] == pytest.approx(each, rel=1e-5)
      if name != "base":
        step = minus(name, parents[name], metric)
        assert table["steps"][name][metric] == pytest.approx(step, rel=1e-4, abs=1e-9), (
          name,
          metric,
        )
    each = [loops.spread(run, popularity, 10) for run in runs]
    for measure in ("coverage@10", "top_decile@10"):
      assert table["rows"][name][measure] == pytest.approx(
        sum(one[measure] for one in each) / len(each)
      )
  assert (table["dataset"], table["split"], table["users"]) == ("online_retail", "test", 6)
  assert table["protocol"] == protocols.protocol_of("online_retail").text


def test_a_list_shorter_than_the_deepest_cut_is_refused(shop):
  with pytest.raises(ValueError, match="49 columns; a cut at 50"):
    ablation_table.results(shop, "test", {"base": [np.full((2, 49), -1)]}, {})


SCORE = {"mean": 0.5, "low": 0.25, "high": 0.75}
TABLE = {
  "dataset": "shop",
  "split": "valid",
  "users": 1234,
  "protocol": "words",
  "seeds": [0, 1],
  "chosen_by": "loss",
  "rows": {
    "a": {"recall@10": SCORE, "coverage@10": 0.125, "top_decile@10": 0.0625},
    "b": {"recall@10": SCORE, "coverage@10": 1.0, "top_decile@10": 0.5},
  },
  "steps": {
    "b": {"parent": "a", "recall@10": {"mean": 0.5, "low": 0.25, "high": 0.75}},
    "c": {"parent": "b", "recall@10": {"mean": -0.5, "low": -0.75, "high": -0.25}},
    "d": {"parent": "b", "recall@10": {"mean": 0.25, "low": 0.0, "high": 0.5}},
    "e": {"parent": "b", "recall@10": {"mean": -0.25, "low": -0.5, "high": 0.0}},
  },
  "tried": {
    "b": [
      {"settings": {"x": 1, "y": 2}, "recall@10": 0.125},
      {"settings": {"x": 2, "y": 2}, "recall@10": 0.25, "revenue@10": 0.5},
    ]
  },
  "chosen": {"b": {"x": 2, "y": 2}},
}
TEXT = """\
shop, valid: 1,234 users, 2 seeds. Means with 95 % intervals.

| row | recall@10 | coverage@10 | top_decile@10 |
|---|---|---|---|
| a | .5000 [.2500, .7500] | 0.125 | 0.062 |
| b | .5000 [.2500, .7500] | 1.000 | 0.500 |

Paired differences, in bold where the interval leaves out 0.

| step | from | recall@10 |
|---|---|---|
| b | a | **+.5000** [+.2500, +.7500] |
| c | b | **-.5000** [-.7500, -.2500] |
| d | b | +.2500 [+.0000, +.5000] |
| e | b | -.2500 [-.5000, +.0000] |

Settings that were tried, by loss, seed 0.

| row | setting | valid recall@10 | valid revenue@10 | |
|---|---|---|---|---|
| b | x=1, y=2 | 0.1250 | 0.0000 | |
| b | x=2, y=2 | 0.2500 | 0.5000 | chosen |

Protocol: words.
"""


def test_the_table_s_words():
  def words(text):
    return [[cell.strip(" -") for cell in line.split("|")] for line in text.splitlines()]

  assert words(ablation_table.format_markdown(TABLE)) == words(TEXT)
  without = {key: TABLE[key] for key in TABLE if key not in ("tried", "seeds")}
  assert "0 seeds" in ablation_table.format_markdown(
    without
  ) and "tried" not in ablation_table.format_markdown(without)


def test_the_file_is_replaced_whole(tmp_path):
  path, other = str(tmp_path / "ablation.md"), TABLE | {"split": "test"}
  assert_replaced_whole(
    path,
    lambda: ablation_table.write_markdown(TABLE, path),
    lambda: ablation_table.write_markdown(other, path),
  )


def test_the_chart_has_each_row_s_metrics(found, monkeypatch):
  drawn = []
  monkeypatch.setattr(plots, "plot_comparison", lambda *given: drawn.append(given))
  ablation_table.plot(found, "there.png")
  ((content, path),) = drawn
  assert path == "there.png"
  assert (content["dataset"], content["split"], content["users"]) == ("online_retail", "test", 40)
  assert list(content["systems"]) == ["base", "vsl", "rspo"]
  for name, parts in content["systems"].items():
    assert list(parts) == list({"all": 0} | found["parts"]) and "new" in parts
    for part, row in parts.items():
      assert list(row) == ["recall@10", "ndcg@10", "revenue@10", "revenue@50", "value_ndcg@10"]
      told = found if part == "all" else found["parts"][part]
      assert row == {metric: told["rows"][name][metric] for metric in row}


def test_the_chart_is_drawn(found, tmp_path):
  ablation_table.plot(found, str(tmp_path / "ablation.png"))
  assert (tmp_path / "ablation.png").stat().st_size > 1000


def test_again_and_new_are_told_apart(bazaar):
  """By lists without seen ads, where they are given, and else by what is left."""
  number, known = len(loops.baskets(bazaar, "test")), loops.known(bazaar)
  requests = protocols.eval_requests(bazaar, "test")
  rankings = {"a": [loops.random_rankings(1, number, 13, 50)],
              "b": [loops.random_rankings(2, number, 13, 50)]}  # fmt: skip
  left = {}
  for name, (run,) in rankings.items():
    lists = [[ad for ad in row if ad >= 0 and int(ad) not in known[int(request)]]
             for row, request in zip(run, requests.request, strict=True)]  # fmt: skip
    left[name] = [np.array([row + [-1] * (50 - len(row)) for row in lists])]
  told = ablation_table.results(bazaar, "test", rankings, {"a": "", "b": "a"})
  assert told == ablation_table.results(bazaar, "test", rankings, {"a": "", "b": "a"}, unseen=left)
  told_of = {
    "again": (rankings, lambda request, ad: ad in known[request]),
    "new": (left, lambda request, ad: ad not in known[request]),
  }
  for part, (lists, counts) in told_of.items():
    alone, minus = loops.scored(bazaar, "test", lists, (10, 50), counts=counts)
    for name, metric in alone:
      row = told["parts"][part]["rows"][name][metric]
      assert row == pytest.approx(alone[name, metric], rel=1e-4), (part, name, metric)
    step = told["parts"][part]["steps"]["b"]["recall@10"]
    assert step == pytest.approx(minus("b", "a", "recall@10"), rel=1e-4, abs=1e-9)
  text = ablation_table.format_markdown(told)
  assert text.index("**again** Targets") < text.index("**new** Targets")
