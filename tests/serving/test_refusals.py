"""What lies wrong in a run's directory is one line of every binary, and a run belongs to one
training at a time.
"""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from gr4ad_jax.config import load_config
from gr4ad_jax.runs import workdir as workdir_lib
from tests import tiny
from tests.serving.runs import SECOND

pytestmark = pytest.mark.usefixtures("compile_cache")

_HOLDER = """
import sys, time
from gr4ad_jax.locks import Lock
lock = Lock(sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def workdir(runs, tmp_path):
  return shutil.copytree(runs / "second", tmp_path / "run")


def edit(path, change):
  """Changes an object in a JSON file by hand."""
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))


def cut(path):
  path.write_bytes(path.read_bytes()[:-100])


def without_sums(folder):
  """A spoiler: the list of a folder is deleted."""
  return lambda workdir: (workdir / folder / "SHA256SUMS").unlink()


def older(workdir):
  """Takes the checksums away: a run that was made before there were any."""
  for path in workdir.rglob("SHA256SUMS"):
    path.unlink()
  edit(workdir / "config.json", lambda config: config.pop("checksums"))


_CONFIG = lambda change: lambda w: edit(w / "config.json", change)  # noqa: E731


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (
      _CONFIG(lambda c: c["sid"].update(codebooks=256)),
      "run/config.json is not allowed: --codebooks=256",
    ),
    (_CONFIG(lambda c: c["sid"].update(codebooks=[4, "3", 6])), "--codebooks=4,3,6 is not allowed"),
    (_CONFIG(lambda c: c["model"].update(width=[16])), "--width=16 is not allowed: a whole number"),
    (_CONFIG(lambda c: c["model"].update(depth=3)), "section model: 'depth' is not known"),
    (_CONFIG(lambda c: c.update(models={})), "config.json: 'models' is not known"),
    (
      _CONFIG(lambda c: c["search"].update(beams=[8, 8, 9])),
      "run/config.json is damaged: it is not what was written",
    ),
    (lambda w: cut(w / "config.json"), "run/config.json is not allowed: config.json is not JSON"),
    (
      lambda w: (w / "config.json").write_bytes(b"\xff{}"),
      "run/config.json is not allowed: 'utf-8'",
    ),
    (lambda w: (w / "checkpoints" / "5").mkdir(), "checkpoints/5 is no whole checkpoint"),
    (
      lambda w: cut(w / "index" / "ads.npz"),
      "index/ads.npz is damaged: it is not what was written",
    ),
    (
      lambda w: (older(w), cut(w / "index" / "codes.npz")),
      "index/codes.npz is damaged: no whole .npz file",
    ),
    (lambda w: (w / "features" / "ecpm.json").unlink(), "features/ecpm.json"),
    (without_sums("."), "run/SHA256SUMS is missing, though"),
    (without_sums("index"), "run/index/SHA256SUMS is missing, though"),
    (without_sums("features"), "run/features/SHA256SUMS is missing, though"),
    (without_sums(f"checkpoints/{SECOND}"), f"checkpoints/{SECOND}/SHA256SUMS is missing, though"),
    (
      lambda w: shutil.rmtree(w / "checkpoints" / f"{SECOND}" / "params"),
      "params/_METADATA is missing",
    ),
  ],
)
def test_a_spoiled_run_is_refused_in_one_line(workdir, spoil, message):
  spoil(workdir)
  done = tiny.run("recommend", f"--workdir={workdir}", "--user=u1")
  assert done.status == 2 and done.out == ""
  refused = [line for line in done.err.splitlines() if "without checksums" not in line]
  assert len(refused) == 1 and refused[0].startswith("error: ") and message in refused[0]


@pytest.mark.parametrize("binary", ["recommend", "serve"])
@pytest.mark.parametrize("text", ["²", "-1", "text", "1.5", "9" * 5000])
def test_a_checkpoint_that_is_no_step_is_refused(workdir, binary, text):
  done = tiny.run(binary, f"--workdir={workdir}", f"--checkpoint={text}")
  assert done.status == 2 and done.err == (
    f"error: --checkpoint={text} is not allowed: 'best', 'last' or the number of a step\n"
  )


@pytest.mark.long
def test_an_older_run_answers_alike_with_one_warning(workdir):
  arguments = (f"--workdir={workdir}", "--user=u1", "--json")
  before = tiny.run("recommend", *arguments)
  assert (before.status, before.err) == (0, "")
  older(workdir)
  after = tiny.run("recommend", *arguments)
  assert (after.status, after.out) == (0, before.out)


@pytest.mark.long
def test_garbage_in_the_metrics_does_not_keep_a_run_from_going_on(workdir):
  lines = (workdir / "metrics.jsonl").read_text()
  (workdir / "metrics.jsonl").write_text("garbage\n" + lines)
  config = load_config(str(workdir))
  source = (f"--ads_path={config.data.ads_path}", f"--events_path={config.data.events_path}")
  settings = (
    *tiny.SETTINGS,
    "--layers=1",
    "--lazy_layers=0",
    f"--max_steps={SECOND}",
  )
  data = ("--dataset=ad_log", f"--data_dir={config.data.data_dir}", "--noevaluate")
  command = (*source, *data, *settings, f"--workdir={workdir}")

  # A second training is refused before anything is written; who reads is let in.
  before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
  holder = subprocess.Popen(
    [sys.executable, "-c", _HOLDER, workdir / "lock"], stdout=subprocess.PIPE, text=True
  )
  try:
    assert holder.stdout.readline() == "held\n"
    refused = tiny.run("train", *command)
    message = (
      f"error: --workdir={workdir} is not allowed: another process is training the run in it\n"
    )
    assert (refused.status, refused.err) == (2, message)
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before
    assert tiny.run("recommend", f"--workdir={workdir}", "--user=u1").status == 0
  finally:
    holder.kill()
    holder.wait()

  done = tiny.run("train", *command)  # the lock went with the process
  assert done.status == 0 and "finished already" in done.out
  assert (workdir / "metrics.jsonl").read_text() == lines


def test_a_directory_is_one_process_s_and_one_that_was_made_for_nothing_goes(tmp_path):
  config = workdir_lib.Config(workdir=str(tmp_path / "runs" / "new"))
  with pytest.raises(KeyError), workdir_lib.alone(config):
    with workdir_lib.alone(config):
      assert os.listdir(config.workdir) == ["lock"]
    assert os.listdir(config.workdir) == ["lock"]  # the outer block has it still
    raise KeyError
  assert os.listdir(tmp_path) == []
  workdir_lib.save_config(config)
  holds = [sys.executable, "-c", "import sys; from gr4ad_jax.locks import Lock; Lock(sys.argv[1])"]
  lock = os.path.join(config.workdir, "lock")
  assert (
    subprocess.run([*holds, lock], capture_output=True, check=False).returncode == 1
  )  # from its first file on
  with workdir_lib.alone(config):
    pass
  assert subprocess.run([*holds, lock], capture_output=True, check=False).returncode == 0
  assert sorted(os.listdir(config.workdir)) == ["SHA256SUMS", "config.json", "lock"]


@pytest.mark.long
def test_an_answer_that_is_not_finite_is_none(workdir, monkeypatch):
  from gr4ad_jax.decoding import ranker

  expand = ranker.Ranker._expand

  def broken(*arguments):
    ad_RK, logp_RK, *others = expand(*arguments)
    return ad_RK, np.where(np.arange(logp_RK.shape[1]) == 3, np.nan, logp_RK), *others

  monkeypatch.setattr(ranker.Ranker, "_expand", broken)
  for binary, arguments in {"recommend": ("--user=u1", "--json"), "evaluate": ()}.items():
    done = tiny.run(binary, f"--workdir={workdir}", *arguments)
    assert (done.status, done.out) == (2, "")
    assert (
      done.err.startswith("error: the model's logp of an ad is nan") and done.err.count("\n") == 1
    )
