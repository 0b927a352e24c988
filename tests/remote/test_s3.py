"""A run in a bucket of an S3 server on loopback: killed, gone on with, judged and served."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from gr4ad_jax.config import load_config
from gr4ad_jax.remote import mirrors, pointer
from gr4ad_jax.remote.store import Store
from gr4ad_jax.requests import inputs as inputs_lib
from gr4ad_jax.requests import request_task
from gr4ad_jax.runs import published, run
from gr4ad_jax.training import state as state_lib
from gr4ad_jax.training import trainer
from gr4ad_jax.training.checkpoint import Checkpointer
from tests import tiny
from tests.test_serve import serving

_ROOT = pathlib.Path(__file__).parents[2]
_URL = "s3://bucket/runs/killed"
_KILLS = 5
_SETTINGS = (
  *tiny.SETTINGS, "--layers=1", "--lazy_layers=0", "--epochs=100", "--max_steps=120",
  "--save_every=10", "--eval_every=0", "--noevaluate",
)  # fmt: skip

pytestmark = [
  pytest.mark.long,
  pytest.mark.usefixtures("compile_cache"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
  """Environment of processes that reach an S3 server with an empty bucket."""
  moto = pytest.importorskip("moto.server", reason="moto[s3] and flask are missing: extra dev")
  s3fs = pytest.importorskip("s3fs", reason="s3fs is missing: the extra s3 brings it")
  there = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
  there.start()
  host, port = there.get_host_and_port()
  made = {
    "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "GR4AD_CACHE": str(tmp_path_factory.mktemp("cache")),
    "JAX_PLATFORMS": "cpu",
  }
  before = {name: os.environ.get(name) for name in made}
  os.environ.update(made)
  system = s3fs.S3FileSystem(skip_instance_cache=True)
  system.mkdir("bucket")
  yield system
  there.stop()
  for name, value in before.items():
    os.environ.pop(name) if value is None else os.environ.update({name: value})


def _train(cache, *arguments):
  """The training as a process of its own, on a machine of its own."""
  return subprocess.Popen(
    [sys.executable, "-m", "experiments.train", *arguments, f"--workdir={_URL}"],
    cwd=_ROOT, env=os.environ | {"GR4AD_CACHE": str(cache)}, stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT, text=True,
  )  # fmt: skip


def _first_step(process, step):
  """The first step that a process tells of, once it has told of `step`."""
  steps = []
  said = []
  for line in process.stdout:
    said.append(line)
    if line.startswith("step "):
      steps.append(int(line.split()[1].partition("/")[0]))
      if steps[-1] >= step:
        return steps[0]
  pytest.fail(f"ended before step {step}: {''.join(said)[-2000:]}")


def _last_state(workdir):
  config = load_config(workdir)
  target = trainer.Trainer(request_task.make(config, inputs_lib.prepare_inputs(config))).state
  folder = run.checkpoint_dir(config)
  with Checkpointer(folder, best_metric=run.best_metric(config), read_only=True) as checkpointer:
    return checkpointer.restore(state_lib.abstract(target)).state


def _lines(workdir):
  return pathlib.Path(workdir, "metrics.jsonl").read_text().splitlines()


@pytest.fixture(scope="module")
def killed(server, tmp_path_factory):
  """A run in the bucket, killed five times: its flags, and at which step each process began."""
  folder = tmp_path_factory.mktemp("killed")
  log = tiny.write_log(folder / "log")
  for name in ("ads.csv", "events.csv"):
    server.put_file(str(log / name), f"bucket/log/{name}")
  flags = (
    "--dataset=ad_log", "--ads_path=s3://bucket/log/ads.csv",
    "--events_path=s3://bucket/log/events.csv", f"--data_dir={folder}/data", *_SETTINGS,
  )  # fmt: skip
  rng = np.random.default_rng(0)
  begun = []
  for kill in range(_KILLS):
    # The last two on one machine; of the others nothing is left but what the bucket has.
    process = _train(folder / f"machine{min(kill, _KILLS - 2)}", *flags)
    begun.append(_first_step(process, 20 * (kill + 1)))
    time.sleep(0.5 * rng.random())  # anywhere in a save or a transfer
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
  process = _train(folder / "last", *flags)
  begun.append(_first_step(process, 120))
  out = process.communicate(timeout=300)[0]
  assert process.returncode == 0 and f"the run lies in {_URL}" in out
  return log, flags, begun


def test_killed_five_times_a_run_in_a_bucket_ends_as_a_local_one(
  killed, tmp_path, monkeypatch, record_property
):
  log, _, begun = killed
  record_property("first_steps", begun)
  local = str(tmp_path / "local")
  assert tiny.run("train", *tiny.source_flags(log), *_SETTINGS, f"--workdir={local}").status == 0
  monkeypatch.setenv("GR4AD_CACHE", str(tmp_path / "reader"))
  monkeypatch.setattr(mirrors, "_mirrors", {})
  here = published.locate(_URL)
  states = [_last_state(where) for where in (local, here)]
  assert [int(state.step) for state in states] == [120, 120]
  for a, b in zip(*map(jax.tree.leaves, states), strict=True):
    np.testing.assert_array_equal(a, b)
  assert _lines(here) == _lines(local)
  # It was gone on with: not all that was killed began anew.
  assert begun[0] == 2 and begun[-1] > 20, begun


def test_a_server_and_an_evaluation_follow_a_run_in_a_bucket(killed, server, tmp_path, monkeypatch):
  _, flags, _ = killed
  for name in ("GR4AD_CACHE", "XDG_STATE_HOME"):
    monkeypatch.setenv(name, str(tmp_path / name))
  monkeypatch.setattr(mirrors, "_mirrors", {})
  with serving(_URL) as served:
    assert served.recommend(user="u1", k=3)["checkpoint"] == 120
    longer = _train(tmp_path / "another", *flags, "--max_steps=124")
    assert longer.wait(timeout=300) == 0
    until = time.monotonic() + 120
    while served.recommend(user="u1", k=3)["checkpoint"] != 124:
      assert time.monotonic() < until
      time.sleep(0.1)
    assert served.end(signal.SIGTERM) == (0, "")
  (state,) = (tmp_path / "XDG_STATE_HOME" / "gr4ad_jax").iterdir()
  assert state.name.startswith("killed-") and (state / "live" / "ads.sqlite").exists()
  done = tiny.run("evaluate", f"--workdir={_URL}", "--split=valid")
  assert (done.status, done.err) == (0, "")
  files = pointer.latest(Store(_URL)).files
  assert "eval/metrics.json" in files and not any(name.startswith("live/") for name in files)
  with server.open(f"{_URL}/{files['eval/metrics.json'].object}", "rb") as file:
    assert json.load(file)["checkpoint"] == 124
