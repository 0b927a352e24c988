"""An exported run answers as the run does, where this package is not."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from gr4ad_jax.answering.contexts import UserHistories
from gr4ad_jax.answering.recommender import Recommender
from gr4ad_jax.config import ConfigError, with_knobs
from gr4ad_jax.delivery import exporting, take_away
from gr4ad_jax.features.batches import SLOT_FEATURES
from tests import tiny

pytestmark = pytest.mark.usefixtures("compile_cache")

# Only jax, numpy and what they need: whatever else this package needs cannot be imported.
_AWAY = """
import sys
class Block:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in ("gr4ad_jax", "flax", "optax", "orbax", "chex", "absl", "pyarrow"):
      raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
"""
_ASK = """
import json, numpy as np
sys.path.insert(0, "model")
import load
requests = dict(np.load("requests.npz"))
model = load.Model("model")
alone = model.recommend({name: x[:1] for name, x in requests.items()}, k=6)
print(json.dumps([model.recommend(requests, k=6), alone]))
"""


@pytest.fixture(scope="module")
def exported(small_run, tmp_path_factory):
  """A folder with the exported `model`."""
  folder = tmp_path_factory.mktemp("away")
  done = tiny.run("export", f"--workdir={small_run}", f"--out={folder}/model")
  assert (done.status, done.err) == (0, "")
  assert done.out == f"checkpoint 4 for cpu, cuda, tpu in {folder}/model\n"
  return folder


def _away(folder, code: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-c", _AWAY + code], cwd=folder, capture_output=True, text=True, check=False
  )


@pytest.mark.long
def test_it_answers_alike_without_this_package(exported, small_run):
  recommender = Recommender.load(str(small_run))
  histories = UserHistories.load(recommender.config)
  log = histories.take([0, 3, 7, 9])
  now_U = recommender.default_moments(log)
  np.savez(exported / "requests.npz", **exporting.arrays_of(recommender.batch(log, now_U)))
  done = _away(exported, _ASK)
  assert (done.returncode, done.stderr) == (0, "")
  together, alone = json.loads(done.stdout)
  expected = recommender.recommend_log(log, 6, int(now_U[0]))
  assert [[ad[0] for ad in one] for one in together] == [[ad.ad_id for ad in x] for x in expected]
  ours = [[(ad.log_p, ad.score, ad.ecpm) for ad in one] for one in expected]
  np.testing.assert_allclose([[ad[1:] for ad in one] for one in together], ours, 1e-5, 1e-5)
  assert [ad[0] for ad in alone[0]] == [ad[0] for ad in together[0]]  # of any number of requests


@pytest.mark.long
def test_the_folder_checks_itself(exported):
  done = _away(exported, 'import runpy; runpy.run_path("model/load.py", run_name="__main__")')
  assert (done.returncode, done.stderr) == (0, "")
  assert len(done.stdout.splitlines()) == 5
  loader = (exported / "model" / "load.py").read_text().splitlines()
  assert len(loader) <= 60


@pytest.mark.long
def test_without_flatbuffers_it_is_named(exported):
  away = _AWAY.replace('"gr4ad_jax", ', '"gr4ad_jax", "flatbuffers", ')
  code = 'import runpy; runpy.run_path("model/load.py", run_name="__main__")'
  done = subprocess.run(
    [sys.executable, "-c", away + code], cwd=exported, capture_output=True, text=True, check=False
  )
  assert done.returncode == 1 and done.stdout == ""
  assert done.stderr.startswith("error: Please install 'flatbuffers'")
  assert done.stderr.count("\n") == 1


def assert_readme(model, platforms):
  """That the folder's README says what lies there."""
  words = (model / "README.md").read_text()
  assert "24 ads" in words and "(`gr4ad`, checkpoint 4)" in words and platforms in words
  assert "pip install jax numpy flatbuffers\n" in words
  named = {line.split("`")[1] for line in words.splitlines() if line.startswith("| `")}
  assert {*named, "README.md"} == {path.name for path in model.iterdir()}


@pytest.mark.long
def test_its_readme_says_what_lies_there(exported):
  assert_readme(exported / "model", "cpu, cuda, tpu")


@pytest.mark.long
def test_the_spec_says_what_goes_in(exported, small_run):
  spec = json.loads((exported / "model" / "spec.json").read_text())
  assert spec["platforms"] == ["cpu", "cuda", "tpu"] and spec["checkpoint"] == 4
  assert spec["inputs"]["slot_features"] == {
    "shape": ["requests", 16, len(SLOT_FEATURES)],
    "dtype": "float32",
  }
  assert spec["slot_features"] == list(SLOT_FEATURES) and len(spec["ads"]) == 24
  assert {path.name for path in (exported / "model").iterdir()} == {
    "search.stablehlo", "weights.npz", "index.npz", "spec.json", "example.npz", "load.py",
    "README.md",
  }  # fmt: skip


def test_what_cannot_be_exported_is_told_before_any_work(small_run, tmp_path):
  (tmp_path / "there").mkdir()
  for flags, message in (
    ([], "error: --out= is not allowed"),
    ([f"--out={tmp_path}/there"], "there is not allowed: it is there already; name a new folder"),
    ([f"--out={tmp_path}/a", "--seen_ads=masked"], "error: --seen_ads=masked is not allowed"),
    ([f"--out={tmp_path}/a", "--quantize=fp8"], "error: --quantize=fp8 is not allowed"),
  ):
    done = tiny.run("export", f"--workdir={small_run}", *flags)
    assert done.status == 2 and message in done.err and done.err.count("\n") == 1
  assert os.listdir(tmp_path) == ["there"]


def test_other_models_are_refused(small_run):
  config = Recommender.load(str(small_run)).config
  items = dataclasses.replace(config, model=dataclasses.replace(config.model, model="sasrec"))
  with pytest.raises(ConfigError, match="--model=sasrec is not allowed: it scores single ads"):
    exporting.check(items)
  guided = with_knobs(items, {"model": "gr4ad_items", "item_weight": 2.0})
  with pytest.raises(ConfigError, match="--item_weight=2.0 is not allowed in an exported search"):
    exporting.check(guided)


def test_a_model_to_take_away_answers_alike(small_run, tmp_path, monkeypatch):
  """In this process and for its platform alone; a failure at the end leaves nothing."""
  recommender = Recommender.load(str(small_run))
  made = []
  lowered = exporting.lowered
  monkeypatch.setattr(exporting, "PLATFORMS", ("cpu",))
  monkeypatch.setattr(exporting, "lowered", lambda *of: made.append(lowered(*of)) or made[0])
  exporting.export(recommender, str(tmp_path / "model"))
  log = UserHistories.load(recommender.config).take([0, 3, 7, 9])
  now_U = recommender.default_moments(log)
  requests = exporting.arrays_of(recommender.batch(log, now_U))
  assert_readme(tmp_path / "model", "cpu")
  found = take_away.Model(tmp_path / "model").recommend(requests, k=6)
  expected = recommender.recommend_log(log, 6, int(now_U[0]))
  assert [[ad[0] for ad in one] for one in found] == [[ad.ad_id for ad in x] for x in expected]
  ours = [[(ad.log_p, ad.score, ad.ecpm) for ad in one] for one in expected]
  np.testing.assert_allclose([[ad[1:] for ad in one] for one in found], ours, 1e-5, 1e-5)

  def failing(*_):
    raise OSError("the disk is full")

  monkeypatch.setattr(exporting.shutil, "copy", failing)
  monkeypatch.setattr(exporting, "lowered", lambda *_: made[0])
  with pytest.raises(OSError, match="the disk is full"):
    exporting.export(recommender, str(tmp_path / "other"))
  assert os.listdir(tmp_path) == ["model"]
