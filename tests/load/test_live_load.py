"""Servers under events and recommendations, without a learner and beside one."""

import json
import pathlib
import sys

import pytest

from gr4ad_jax.load import live_load
from gr4ad_jax.load.event_load import Rates
from tests.load import fake_server

SHOP = (sys.executable, str(pathlib.Path(fake_server.__file__).with_name("fake_shop.py")))
RATES = Rates(events=40, batch=10, asks=24)


def learner(after):
  """A command that says it learns, and then something else."""
  return sys.executable, "-c", f"print('learning in x', flush=True); {after}"


def loaded(small_run, learn, out=""):
  return live_load.run_suite(
    str(small_run), 0.5, out=str(out), serve=SHOP, learn=learn, rates=RATES
  )


def test_both_loads_are_measured(small_run, tmp_path, monkeypatch):
  monkeypatch.setattr(live_load, "_WARM", 0.25)
  before = sorted(small_run.rglob("*"))
  learn = learner("import time; print('step 8', flush=True); time.sleep(60)")
  found = loaded(small_run, learn, tmp_path / "live.json")
  for name in ("frozen", "learning"):
    one = found[name]
    assert (one["posts"], one["refused"], one["lost"], one["answered"]) == (2, 0, 0, 1.0)
    assert one["effect_ms"]["p50"] > 0 and one["machine_load"] >= 0
  assert found["learning"]["learner"] == "step 8" and "learner" not in found["frozen"]
  assert json.loads((tmp_path / "live.json").read_text()) == found
  assert live_load.in_words(found).endswith("the learner's last line: step 8")
  assert sorted(small_run.rglob("*")) == before  # all was done on a copy


def test_a_learner_that_is_not_there_is_told(small_run, tmp_path, monkeypatch):
  """Figures "beside a learner" without one would be of something else."""
  with pytest.raises(RuntimeError, match="the learner did not start: error: no stream"):
    with live_load._learner((sys.executable, "-c", "print('error: no stream')"), str(tmp_path)):
      pass
  monkeypatch.setattr(live_load, "_WARM", 0.0)
  with pytest.raises(RuntimeError, match="the learner ended: diverged"):
    loaded(small_run, learner("print('diverged')"))
