import json

import numpy as np
import pytest

from gr4ad_jax.evaluation import plots, report_tables


@pytest.fixture(autouse=True)
def _needs_matplotlib(tmp_path, monkeypatch):
  monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
  pytest.importorskip("matplotlib")


def _pixels(path):
  import matplotlib.image

  return matplotlib.image.imread(str(path), format="png")


def _write(path, lines):
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return str(path)


def test_training_curves_stand_gaps_and_foreign_keys(tmp_path):
  lines = [
    {"step": 20, "train/loss": 6.0, "train/sid": 5.0, "train/learning_rate": 1e-3, "time": 1.5},
    {"step": 40, "split": "train", "train/loss": 5.0},
    {"step": 40, "valid/recall@10": 0.1},
    {"step": 40, "train/loss": 4.5},
    {"step": 60, "valid/recall@10": 0.2, "valid/ndcg@10": None},
  ]
  png = tmp_path / "plots" / "training.png"
  path = _write(tmp_path / "metrics.jsonl", lines)
  plots.plot_training(path, str(png))
  both = _pixels(png)
  assert both.std() > 0.01
  assert plots._read_curves(path)["train/loss"] == {20: 6.0, 40: 4.5}
  plots.plot_training(_write(tmp_path / "short.jsonl", lines[:2]), str(png))
  assert _pixels(png).shape[1] < both.shape[1]  # one panel in place of two


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ('{"step": 1}\n{"step": \n', "line 2: not JSON"),
    ('{"train/loss": 1.0}\n', "line 1: no whole-numbered 'step'"),
    ('{"step": 1, "time": 2.0}\n', "no training loss and no valid metric"),
  ],
)
def test_bad_metrics_file(tmp_path, text, message):
  (tmp_path / "metrics.jsonl").write_text(text)
  with pytest.raises(ValueError, match=message):
    plots.plot_training(str(tmp_path / "metrics.jsonl"), str(tmp_path / "x.png"))
  assert not (tmp_path / "x.png").exists()


def test_comparison_of_systems(shop, tmp_path):
  ranked = np.tile(np.append([3, 0, 2], np.full(47, -1)), (2, 1))
  found = report_tables.results(shop, "test", {"gr4ad": ranked, "popularity": ranked[:, ::-1]})
  png = tmp_path / "comparison.png"
  plots.plot_comparison(json.loads(json.dumps(found)), str(png))
  assert _pixels(png).std() > 0.01
  assert [path.name for path in tmp_path.glob("*png*")] == ["comparison.png"]
  with pytest.raises(ValueError, match="no system"):
    plots.plot_comparison({**found, "systems": {}}, str(png))
