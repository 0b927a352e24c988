"""A run made into a folder to take away: the same lists, its card, and that it is only read."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from gr4ad_jax.answering.recommender import Recommender
from gr4ad_jax.checksums import DamagedError
from gr4ad_jax.config import ConfigError, load_config, with_knobs
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.decoding.ranker import Ranking
from gr4ad_jax.delivery import publish
from gr4ad_jax.requests import inputs, request_task
from gr4ad_jax.zoo import registry
from tests import tiny

pytestmark = pytest.mark.usefixtures("compile_cache")
_HISTORIES = ([], ["ad01"], ["ad07", "ad08"])


@pytest.fixture(scope="module")
def folder(small_run, tmp_path_factory):
  """The run of the tests in half precision, without a card."""
  out = tmp_path_factory.mktemp("published") / "small"
  publish.write(load_config(str(small_run)), str(out), "float16")
  return out


@pytest.fixture(scope="module")
def run_lists(small_run):
  recommender = Recommender.load(str(small_run))
  return [recommender.recommend(history) for history in _HISTORIES]


def _state(folder):
  """What lies in a folder, with its moments: a writer would show."""
  return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_lists_are_those_of_the_run(folder, run_lists):
  before = _state(folder)
  recommender = Recommender.from_pretrained(str(folder))
  for history, theirs in zip(_HISTORIES, run_lists, strict=True):
    ours = recommender.recommend(history)
    assert [ad.ad_id for ad in ours] == [ad.ad_id for ad in theirs]
    np.testing.assert_allclose([ad.log_p for ad in ours], [ad.log_p for ad in theirs], atol=0.01)
  assert _state(folder) == before


def test_in_float32_nothing_moves(small_run, tmp_path):
  publish.write(load_config(str(small_run)), str(tmp_path), "float32")
  trees = []
  for folder in (small_run, tmp_path):
    config = load_config(str(folder))
    trees.append(request_task.load_params(config, registry.build(config, 24)))
  assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), *trees))


def test_what_lies_there_is_data_without_paths_of_the_machine(folder, small_run):
  names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
  assert {name for name in names if not name.endswith("SHA256SUMS")} == {
    "config.json", "weights.safetensors", "tokenizer/tokenizer.npz",
    "index/codes.npz", "index/ads.npz", "features/neighbors.npz", "features/trends.npz",
    "features/ecpm.json", "features/names.json", "features/log.json",
  }  # fmt: skip
  assert load_config(str(folder)).data.ads_path == "ads.csv"
  for name in names:
    assert str(small_run.parent).encode() not in (folder / name).read_bytes(), name


def test_how_alike_two_sides_are(small_run, monkeypatch):
  """Rankings by hand: of the lists of ten ads one has two places exchanged, one another ad."""
  config = load_config(str(small_run))
  made = dataclasses.replace(config, workdir="made")
  data = inputs.prepare_inputs(config)
  theirs_RK = np.tile(np.arange(20, dtype=np.int32), (10, 1))
  ours_RK = theirs_RK.copy()
  ours_RK[3, [4, 5]] = ours_RK[3, [5, 4]]
  ours_RK[7, 9] = 23
  ours_RK[8, 12] = 23  # beyond the tenth
  logp_RK = np.log(np.full((10, 20), 0.01, np.float32))
  apart_RK = logp_RK + np.float32(0.25) * (np.arange(10) == 2)[:, None]
  apart_RK[7, 9] += 5  # of different ads: not compared
  sides = {"made": (ours_RK, apart_RK), config.workdir: (theirs_RK, logp_RK)}

  def rank_run(config, inputs, requests, k):
    assert len(requests) == 10 and k <= 50
    ad_RK, logp_RK = sides[config.workdir]
    wide = lambda x, fill: np.pad(x, ((0, 0), (0, k - 20)), constant_values=fill)  # noqa: E731
    empty = np.zeros((10, k), np.float32)
    return Ranking(wide(ad_RK, -1), wide(logp_RK, -np.inf), empty, empty)

  monkeypatch.setattr(publish.scoring, "rank_run", rank_run)
  heard = []
  found = publish.compare(config, made, data, heard.append)
  assert (found["requests"], found["same_lists"], found["same_ads"]) == (10, 0.8, 0.99)
  assert found["largest_log_p"] == pytest.approx(0.25, abs=1e-6)
  assert found["figures"].keys() == found["of_the_run"].keys() >= {"recall@10", "ndcg@10"}
  assert found["of_the_run"]["recall@50"]["mean"] > 0.5 and len(heard) == 2


@pytest.mark.long
def test_the_card_tells_what_an_evaluation_finds(small_run, tmp_path):
  folder = tmp_path / "small"
  done = tiny.run(
    "publish", f"--workdir={small_run}", f"--out={folder}", "--license=mit", "--note=Made up."
  )
  assert done.status == 0, done.err
  page = (folder / "README.md").read_text()
  assert page in done.out and page.startswith("---\nlicense: mit\n") and "\nMade up.\n" in page
  card = publish.load_card(str(folder))
  assert (card["name"], card["license"], card["precision"]) == ("small", "mit", "float16")
  assert card["step"] == 4 and card["ads"] == 24 and card["parameters"] > 1000
  log = tiny.source_flags(small_run.parent / "small_log")[1:]
  before = _state(folder)
  done = tiny.run("evaluate", f"--workdir={folder}", *log, f"--state_dir={tmp_path}/state")
  assert done.status == 0, done.err
  assert done.out.endswith(f"written to {tmp_path}/state/eval\n") and _state(folder) == before
  written = json.loads((tmp_path / "state" / "eval" / "metrics.json").read_text())
  found = written["systems"]["gr4ad"]["all"]
  assert found.keys() == card["figures"].keys() == card["of_the_run"].keys()
  for name, figure in found.items():
    assert figure["mean"] == pytest.approx(card["figures"][name]["mean"], abs=1e-9)
    assert f"| {name} | {figure['mean']:.4f} [" in page
  assert card["same_ads"] > 0.9 and 0 < card["largest_log_p"] < 0.01
  for example in card["examples"]:
    assert len(example["history"]) == 1 and len(example["ads"]) == 8
  done = tiny.run("publish", f"--workdir={folder}", f"--out={tmp_path}/again")
  assert done.status == 2 and "it is published already" in done.err


def test_from_a_shell(folder, run_lists):
  done = tiny.run("recommend", f"--workdir={folder}", "--ads=ad07,ad08", "--json")
  assert done.status == 0, done.err
  ads = json.loads(done.out)["ads"]
  assert [ad["ad_id"] for ad in ads] == [ad.ad_id for ad in run_lists[2]]
  done = tiny.run("recommend", f"--workdir={folder}", "--ads=ad07", "--user=u1")
  assert (done.status, done.err) == (
    2, "error: --user, --history and --ads: exactly one of them is needed, or --basket alone\n"
  )  # fmt: skip


def test_nobody_trains_it_further_or_from_it(folder, small_run, tmp_path):
  before = _state(folder)
  log = tiny.source_flags(small_run.parent / "small_log")
  once = ("--max_steps=4", "--noevaluate", "--layers=1", "--lazy_layers=0")
  done = tiny.run("train", *log, *tiny.SETTINGS, *once, f"--workdir={folder}")
  assert done.status == 2 and "a published run is only read" in done.err
  done = tiny.run("train", f"--init_from={folder}", *log, f"--workdir={tmp_path}/next")
  assert done.status == 2 and "--init_from=" in done.err and "published run" in done.err
  assert _state(folder) == before and not (tmp_path / "next").exists()


def test_what_cannot_be_published_leaves_nothing(folder, small_run, tmp_path):
  for workdir, out, message in (
    (small_run, folder, "it is there already"),
    (tmp_path, tmp_path / "none", "holds no config.json"),
  ):
    done = tiny.run("publish", f"--workdir={workdir}", f"--out={out}")
    assert done.status == 2 and message in done.err
  assert tiny.run("publish", f"--workdir={small_run}").err.startswith(
    "error: --out= is not allowed"
  )
  config = load_config(str(small_run))
  gone = dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=str(tmp_path)))
  with pytest.raises(DataError, match="no.csv: no such file"):
    moved = dataclasses.replace(gone.data, ads_path="no.csv", events_path="no.csv")
    publish.publish(dataclasses.replace(gone, data=moved), str(tmp_path / "x"), publish.About("x"))
  promoted = with_knobs(config, {"promotions": True})
  with pytest.raises(ConfigError, match="a table of the data set that may not be handed on"):
    publish.publish(promoted, str(tmp_path / "x"), publish.About("x"))
  assert list(tmp_path.iterdir()) == []


def test_damage_is_told(folder, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(folder, copy)
  path = copy / "weights.safetensors"
  path.write_bytes(path.read_bytes()[:-2] + b"xx")
  with pytest.raises(DamagedError, match="weights.safetensors is damaged"):
    Recommender.from_pretrained(str(copy))
  with pytest.raises(ConfigError, match="there is online_retail"):
    Recommender.from_pretrained("small")
