"""The engine where a checkpoint or a search comes into use, or does not."""

import concurrent.futures
import dataclasses
import shutil
import threading
import time

import pytest

from gr4ad_jax.answering.messages import Query
from gr4ad_jax.answering.recommender import Recommender
from gr4ad_jax.decoding.searcher import Searcher
from gr4ad_jax.engine import plans
from gr4ad_jax.engine.engine import ServingEngine
from gr4ad_jax.training import checkpoint
from tests.engine.engines import assert_same, ids
from tests.serving.runs import EVERYTHING, FIRST, SECOND, add_checkpoint, config_of

pytestmark = pytest.mark.usefixtures("compile_cache")


@pytest.mark.long
def test_a_newer_checkpoint_comes_into_use_and_no_request_is_lost(runs, workdir):
  config = config_of(workdir, reload_seconds=0.1)
  with ServingEngine(str(workdir), config, "last") as engine:
    stop, steps, failures = threading.Event(), [], []

    def load(seed):
      while not stop.is_set():
        try:
          steps.append(engine.recommend(Query(user=f"u{seed}", fallback=False)).checkpoint)
        except Exception as error:
          failures.append(error)

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
      loads = [pool.submit(load, seed) for seed in range(3)]
      time.sleep(0.3)
      add_checkpoint(runs, workdir)
      until = time.monotonic() + 30
      while engine.step == FIRST and time.monotonic() < until:
        time.sleep(0.02)
      time.sleep(0.3)
      stop.set()
      concurrent.futures.wait(loads)
    assert not failures and set(steps) == {FIRST, SECOND}
    answer = engine.recommend(Query(history=("ad03",), k=5))
    second = Recommender.load(str(runs / "second"), "last", config.search)
    assert answer.checkpoint == SECOND
    assert_same(answer, second.recommend(["ad03"], k=5))


def test_a_newer_checkpoint_answers_after_a_reload(runs, workdir, engine):
  before = engine.recommend(Query(history=("ad03",), k=5))
  add_checkpoint(runs, workdir)
  engine.reload()
  after = engine.recommend(Query(history=("ad03",), k=5))
  assert (before.checkpoint, engine.step, after.checkpoint) == (FIRST, SECOND, SECOND)
  assert [ad["log_p"] for ad in after.ads] != [ad["log_p"] for ad in before.ads]


@pytest.fixture(scope="module")
def first(runs, tmp_path_factory):
  """A workdir with the first checkpoint, and an engine on it that never gets another one."""
  workdir = shutil.copytree(runs / "first", tmp_path_factory.mktemp("first") / "run")
  with ServingEngine(str(workdir), config_of(workdir), "last") as engine:
    yield workdir, engine


@pytest.fixture
def added(runs, first):
  """The second checkpoint, beside the first until the test is over."""
  workdir, _ = first
  add_checkpoint(runs, workdir)
  yield workdir / "checkpoints" / str(SECOND)
  shutil.rmtree(workdir / "checkpoints" / str(SECOND))


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_checkpoint_is_left_alone(first, added, damage):
  _, engine = first
  before = engine.recommend(Query(user="u1"))
  files = [path for path in added.rglob("*") if path.is_file()]
  for path in files:
    if damage == "cut":
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
      path.unlink()
  with pytest.raises(Exception, match="."):
    engine.reload()
  assert engine.step == FIRST and engine.ready
  assert ids(engine.recommend(Query(user="u1", cache=False))) == ids(before)


def test_numbers_that_are_not_finite_are_a_damage(first, added, monkeypatch):
  _, engine = first
  monkeypatch.setattr(checkpoint, "is_finite", lambda params: False)
  with pytest.raises(ValueError, match="not finite"):
    engine.reload()
  assert engine.step == FIRST


@pytest.mark.long
def test_one_search_answers_while_the_others_are_compiled_behind_it(workdir, monkeypatch):
  release = threading.Event()
  prepare = Searcher.prepare

  def held(self, variables, row, buckets, *arguments):
    if len(buckets) > 1:
      assert release.wait(60)
    return prepare(self, variables, row, buckets, *arguments)

  monkeypatch.setattr(Searcher, "prepare", held)
  monkeypatch.setattr(
    plans, "yield_to_others", lambda: None
  )  # a busy machine would never come to it
  config = config_of(workdir, buckets=(2, 4), tabs=True, tabs_factors=(0.5, 1.0), cache_seconds=1e4)
  query = Query(user="u1", k=5)
  with ServingEngine(str(workdir), config, "last", early=True) as early:
    assert early.ready and early.compiling and early.stats()["schedules"] == (EVERYTHING,)
    first = early.recommend(query)
    assert (first.source, first.beams) == ("model", EVERYTHING)
    futures = [early.submit(Query(user=f"u{n}", cache=False)) for n in range(4)]
    assert all(future.result(60).beams == EVERYTHING for future in futures)
    release.set()
    while early.compiling:
      time.sleep(0.01)
    assert len(early.stats()["schedules"]) == 2 and early.beams == EVERYTHING
    assert early.recommend(query).source == "cache"  # what was kept before is as wide
    again = early.recommend(dataclasses.replace(query, cache=False))
    assert ids(again) == ids(first)


@pytest.mark.long
def test_the_first_search_goes_on_where_the_others_cannot_be_compiled(workdir, monkeypatch, caplog):
  prepare = Searcher.prepare

  def broken(self, variables, row, buckets, *arguments):
    if len(buckets) > 1:
      raise MemoryError("no room")
    return prepare(self, variables, row, buckets, *arguments)

  monkeypatch.setattr(Searcher, "prepare", broken)
  monkeypatch.setattr(plans, "yield_to_others", lambda: None)
  with ServingEngine(str(workdir), config_of(workdir, buckets=(1, 2)), "last", early=True) as early:
    while early.compiling:
      time.sleep(0.01)
    assert early.recommend(Query(user="u1", k=5)).source == "model"
    assert "the first one stays in use" in caplog.text
