"""The ablation's table: seeds averaged, steps paired with their parents, Markdown that names what was chosen."""

import numpy as np
import pytest

from gr4ad_jax.evaluation import ablation_table, protocols


@pytest.fixture(scope="module")
def found(make_dataset):
  rng = np.random.default_rng(0)
  rows = []
  for user in range(40):
    for visit in range(3):
      split = ("train", "valid", "test")[visit]
      rows += [(user, 3 * user + visit, int(ad), float(rng.exponential(5)), split) for ad in rng.choice(80, 3, False)]
  dataset = make_dataset(rows, num_ads=80)
  requests = protocols.eval_requests(dataset, "test")
  none = np.stack([rng.permutation(80)[:50] for _ in range(len(requests))])
  best = none.copy()
  for r in range(len(requests)):
    own = requests.target_ad[requests.target_start[r] : requests.target_start[r + 1]]
    best[r] = np.concatenate([own, np.setdiff1d(np.arange(80), own)])[:50]
  rankings = {"base": [none, none[:, ::-1]], "vsl": [best, none], "rspo": [best, best]}
  return ablation_table.results(dataset, "test", rankings, {"base": "", "vsl": "base", "rspo": "vsl"})


def test_rows_average_their_seeds_and_steps_subtract_the_parent(found):
  assert found["rows"]["rspo"]["recall@10"]["mean"] == pytest.approx(1)
  for metric in ("recall@10", "revenue@10", "value_ndcg@10"):
    vsl, rspo = (found["rows"][row][metric]["mean"] for row in ("vsl", "rspo"))
    assert vsl == pytest.approx(np.mean(found["by_seed"]["vsl"][metric]))
    assert found["steps"]["rspo"][metric]["mean"] == pytest.approx(rspo - vsl)
  assert found["steps"]["rspo"]["parent"] == "vsl" and "base" not in found["steps"]
  assert found["steps"]["rspo"]["recall@10"]["low"] > 0


def test_markdown_shows_rows_steps_and_what_was_tried(found, tmp_path):
  tried = {"rspo": [{"settings": {"preference_weight": w}, "recall@10": 0.1, "revenue@10": w / 10} for w in (1.0, 2.0)]}
  chosen = {"rspo": {"preference_weight": 2.0}}
  full = found | {"seeds": [0, 1], "tried": tried, "chosen": chosen, "chosen_by": "valid revenue@10"}
  path = tmp_path / "ablation.md"
  ablation_table.write_markdown(full, str(path))
  text = path.read_text()
  assert "40 users, 2 seeds" in text and "coverage@10" in text and "value_ndcg@10" in text
  chosen_line = next(line for line in text.splitlines() if "preference_weight=2.0" in line)
  assert "chosen" in chosen_line and ".2000" in chosen_line
  assert any(line.startswith("| rspo ") and "**+" in line for line in text.splitlines())


def test_chart_is_drawn(found, tmp_path):
  pytest.importorskip("matplotlib")
  ablation_table.plot(found, str(tmp_path / "ablation.png"))
  assert (tmp_path / "ablation.png").stat().st_size > 5_000
