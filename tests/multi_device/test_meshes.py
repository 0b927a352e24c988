"""The same run on one device, on eight under several meshes and in two processes; checkpoints
across meshes; jobs that lose a process or are asked to stop.
"""

import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from gr4ad_jax.answering.contexts import UserHistories
from gr4ad_jax.answering.recommender import Recommender
from gr4ad_jax.config import load_config
from tests import devices, tiny

pytestmark = pytest.mark.long
_ROOT = pathlib.Path(__file__).parents[2]
_LENGTH = (
  "--epochs=50", "--max_steps=50", "--log_every=1", "--save_every=10", "--noevaluate",
  "--fit_splits=train+valid", "--learning_rate=0.0005",
)  # fmt: skip
MESHES = {"data": "data:8", "mixed": "data:2,fsdp:2,tensor:2"}

_EIGHT = """
import sys
import jax, numpy as np
from gr4ad_jax import config as config_lib
from gr4ad_jax.requests import inputs, request_task
from gr4ad_jax.runs import run
from gr4ad_jax.training import state as state_lib
from gr4ad_jax.training import trainer
from gr4ad_jax.training.checkpoint import Checkpointer
from tests import tiny
from tests.multi_device.test_meshes import MESHES

assert jax.device_count() == 8
folder, *flags = sys.argv[1:]
for name, mesh in MESHES.items():
  done = tiny.run("train", *flags, f"--mesh={mesh}", f"--workdir={folder}/{name}")
  assert (done.status, done.err) == (0, ""), done

# Saved on data:8, restored on another mesh: each array lies as that mesh says, and the next step is the same.
config = config_lib.load_config(f"{folder}/data")
found = {}
for mesh in ("data:8", "fsdp:4,tensor:2"):
  knobs = config_lib.with_knobs(config, {"mesh": mesh, "max_steps": 60})
  made = trainer.Trainer(request_task.make(knobs, inputs.prepare_inputs(knobs)))
  with Checkpointer(run.checkpoint_dir(knobs), read_only=True) as checkpointer:
    state = checkpointer.restore(state_lib.abstract(made.state)).state
  assert state_lib.shardings_of(state) == state_lib.shardings_of(made.state)
  restored = jax.device_get((state.params, state.opt_state))
  kernel = state.params["decoder"]["block_0"]["ffn"]["in_proj"]["kernel"]
  expected = {"data:8": kernel.shape, "fsdp:4,tensor:2": (kernel.shape[0] // 4, kernel.shape[1] // 2)}[mesh]
  assert kernel.sharding.shard_shape(kernel.shape) == expected
  after, metrics = made.step(state, made.make_batch(50))
  found[mesh] = restored, jax.device_get((after.params, metrics["loss"]))
(saved, stepped), (elsewhere, stepped_elsewhere) = found.values()
jax.tree.map(np.testing.assert_array_equal, saved, elsewhere)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), stepped, stepped_elsewhere)
np.savez(f"{folder}/next_step.npz", *jax.tree.leaves(saved[0]), *jax.tree.leaves(stepped))
print("passed")
"""


def _environment(count: int) -> dict[str, str]:
  return devices.environment(count, PYTHONPATH=str(_ROOT), PYTHON=sys.executable)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, compile_cache):
  """Folder of the workdirs one, data, mixed and processes: the same run, each elsewhere; and its
  flags.
  """
  folder = tmp_path_factory.mktemp("meshes")
  flags = [*tiny.source_flags(tiny.write_log(folder / "log")), *tiny.SETTINGS, *_LENGTH]
  done = tiny.run("train", *flags, f"--workdir={folder}/one")
  assert (done.status, done.err) == (0, "")
  eight = [sys.executable, "-c", _EIGHT, str(folder), *flags]
  two = [str(_ROOT / "launch/local.sh"), "-n", "2", *flags, f"--workdir={folder}/processes"]
  for command, count in ((eight, 8), (two, 2)):
    ended = subprocess.run(
      command, cwd=_ROOT, env=_environment(count), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
  return folder, flags


def _losses(workdir: pathlib.Path) -> list[float]:
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  losses = {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}
  assert list(losses) == list(range(1, 51))
  return list(losses.values())


@pytest.fixture(scope="module")
def lists():
  """The best ten ads of three users by the run in a workdir; a run is opened once."""

  @functools.cache
  def of(workdir: pathlib.Path) -> list:
    histories = UserHistories.load(load_config(str(workdir)))
    recommender = Recommender.load(str(workdir))
    return [recommender.recommend_log(histories.log_of(user), 10)[0] for user in ("u0", "u4", "u9")]

  return of


@pytest.mark.parametrize("name", [*MESHES, "processes"])
def test_fifty_losses_and_the_recommendations_are_those_of_one_device(runs, lists, name):
  runs, _ = runs
  losses = _losses(runs / "one")
  np.testing.assert_allclose(_losses(runs / name), losses, atol=1e-4)
  assert (
    np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.2
  )  # it learned something; one step's loss is noise
  for one, other in zip(lists(runs / "one"), lists(runs / name), strict=True):
    assert [ad.ad_id for ad in one] == [ad.ad_id for ad in other]
    np.testing.assert_allclose(*([ad.score for ad in ads] for ads in (one, other)), atol=1e-3)


def test_a_checkpoint_of_eight_devices_goes_on_alone(runs):
  import jax

  from gr4ad_jax import config as config_lib
  from gr4ad_jax.requests import inputs, request_task
  from gr4ad_jax.runs import run
  from gr4ad_jax.training import state as state_lib
  from gr4ad_jax.training import trainer
  from gr4ad_jax.training.checkpoint import Checkpointer

  runs, _ = runs
  config = config_lib.with_knobs(
    config_lib.load_config(str(runs / "data")), {"mesh": "data:-1", "max_steps": 60}
  )
  made = trainer.Trainer(request_task.make(config, inputs.prepare_inputs(config)))
  with Checkpointer(run.checkpoint_dir(config), read_only=True) as checkpointer:
    state = checkpointer.restore(state_lib.abstract(made.state)).state
  saved = jax.tree.leaves(jax.device_get(state.params))
  after, metrics = made.step(state, made.make_batch(50))
  stepped = jax.tree.leaves(jax.device_get((after.params, metrics["loss"])))
  with np.load(runs / "next_step.npz") as expected:
    arrays = [expected[name] for name in expected.files]
  for ours, theirs in zip(saved, arrays, strict=False):
    np.testing.assert_array_equal(ours, theirs)
  for ours, theirs in zip(stepped, arrays[len(saved) :], strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


class _Job:
  """`launch/local.sh` on its way: four devices in two processes, or in one."""

  def __init__(self, folder: pathlib.Path, flags: list[str], processes: int = 2, name: str = "job"):
    self.workdir = folder / name
    several = ["-n", str(processes)] if processes > 1 else []
    command = [str(_ROOT / "launch/local.sh"), *several, *flags, f"--workdir={self.workdir}"]
    environment, pipe = _environment(4 // processes), subprocess.PIPE
    self._process = subprocess.Popen(
      command, cwd=_ROOT, env=environment, stdout=pipe, stderr=pipe, text=True
    )

  def wait_for_step(self, step: int) -> None:
    """Until a metric line of `step` is there."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and self._process.poll() is None:
      path = self.workdir / "metrics.jsonl"
      if path.exists() and any(
        f'"step": {step},' in line for line in path.read_text().splitlines()
      ):
        return
      time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached: {self.end()}")

  def signal(self, process: int, number: int) -> None:
    """Sends a signal to one of the two."""
    found = subprocess.run(
      ["pgrep", "-f", f"experiments.train.*--workdir={self.workdir}.*--process_id={process}"],
      capture_output=True, text=True, check=True,
    )  # fmt: skip
    for pid in found.stdout.split():
      os.kill(int(pid), number)

  def end(self) -> tuple[int, str]:
    """Exit status, and all that was said."""
    out, err = self._process.communicate(timeout=300)
    return self._process.returncode, out + err


def test_a_killed_process_ends_the_job_and_it_goes_on_to_the_same_loss(runs):
  folder, flags = runs
  job = _Job(folder, flags)
  job.wait_for_step(15)
  job.signal(1, signal.SIGKILL)
  killed = time.monotonic()
  status, said = job.end()
  assert time.monotonic() - killed < 60
  assert status and "error: process 1 on " in said
  assert "is gone (the same command goes on from the last checkpoint): the job ends" in said

  job = _Job(folder, flags)
  job.wait_for_step(25)
  job.signal(1, signal.SIGTERM)  # asked of one, done by both
  status, said = job.end()
  assert status == 0 and said.count("stopped and saved at step") == 1

  status, said = _Job(folder, flags, processes=1).end()  # another number of processes
  assert status == 0 and "step 50/50" in said
  np.testing.assert_allclose(_losses(job.workdir), _losses(folder / "processes"), rtol=1e-6)


def test_rounds_of_candidates_and_scores_on_valid_are_shared_out(runs):
  folder, flags = runs
  rounds = (
    "--objective=rspo",
    "--reward=logged",
    "--refresh_steps=3",
    "--candidate_beams=8",
    "--policy_candidates=6",
    "--other_candidates=2",
    "--fit_splits=train",
    "--max_steps=8",
    "--eval_every=4",
  )
  found = []
  for name, processes in (("rounds1", 1), ("rounds2", 2)):
    job = _Job(folder, [*flags, *rounds], processes, name)
    status, said = job.end()
    assert status == 0, said
    lines = map(json.loads, (job.workdir / "metrics.jsonl").read_text().splitlines())
    told = ("step", "round/", "valid/")
    found.append(
      [{key: value for key, value in line.items() if key.startswith(told)} for line in lines]
    )
  assert len([line for line in found[0] if "round/entropy" in line]) == 3
  assert len([line for line in found[0] if "valid/recall@10" in line]) == 2
  for one, two in zip(*found, strict=True):
    assert one == pytest.approx(two, rel=1e-4, abs=1e-6)


def test_a_process_that_does_not_come_is_named(runs):
  folder, flags = runs
  command = [
    sys.executable,
    "-m",
    "experiments.train",
    *flags,
    f"--workdir={folder}/alone",
    "--start_timeout=2",
  ]
  with socket.create_server(("127.0.0.1", 0)) as server:
    where = f"127.0.0.1:{server.getsockname()[1]}"
  job = [f"--coordinator={where}", "--num_processes=2", "--process_id=0"]
  command += job
  ended = subprocess.run(
    command, cwd=_ROOT, env=_environment(1), capture_output=True, text=True, check=False
  )
  message = f"error: process 1 of 2 did not come to {where} in time (--start_timeout)\n"
  assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", message)
  assert not (folder / "alone").exists()
