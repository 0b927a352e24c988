"""The watch over a run's checkpoints: what goes wrong there is one line, once, and what is in
use stays.
"""

import dataclasses
import pathlib
import shutil
import time

import chex
import pytest

from gr4ad_jax.config import load_config
from gr4ad_jax.engine.reload import CheckpointSource, Reloader
from gr4ad_jax.learning.promotions import Promotions
from gr4ad_jax.training.checkpoint import Checkpointer
from gr4ad_jax.zoo import registry


class Source:
  """Checkpoints of a folder, without parameters."""

  def __init__(self, folder: pathlib.Path):
    self.folder, self.looks, self.refusal = folder, 0, ""

  def listing(self) -> frozenset[str]:
    self.looks += 1
    if self.refusal:
      raise PermissionError(13, self.refusal)
    found = self.folder.iterdir() if self.folder.is_dir() else ()
    return frozenset(path.name for path in found)

  def newest(self) -> int:
    with Checkpointer(str(self.folder), read_only=True):
      return max(int(name) for name in self.listing())

  def load(self, step: int) -> str:
    return f"parameters of {step}"


@pytest.fixture
def source(tmp_path):
  (tmp_path / "checkpoints" / "4").mkdir(parents=True)
  (tmp_path / "checkpoints" / "4" / "_CHECKPOINT_METADATA").write_text("{}")
  return Source(tmp_path / "checkpoints")


def until(holds):
  end = time.monotonic() + 60
  while not holds():
    assert time.monotonic() < end
    time.sleep(0.005)


def watched(source, caplog, change, used=()):
  """The lines of the log while the folder is changed, and looked at some times more."""
  in_use = []
  reloader = Reloader(source, 4, lambda *found: in_use.append(found), 0.01)
  try:
    change(in_use)
    seen = source.looks
    until(lambda: source.looks > seen + 5)
  finally:
    reloader.close()
  assert in_use == list(used)
  return [record for record in caplog.records if record.name == "gr4ad_jax.engine.reload"]


def test_a_folder_that_vanishes_is_one_line_and_the_next_checkpoint_is_used(source, caplog):
  def change(in_use):
    shutil.move(source.folder, source.folder.with_name("away"))
    seen = source.looks
    until(lambda: source.looks > seen + 5)
    shutil.copytree(source.folder.with_name("away") / "4", source.folder.with_name("away") / "8")
    shutil.move(source.folder.with_name("away"), source.folder)
    until(lambda: in_use)

  (line,) = watched(source, caplog, change, [(8, "parameters of 8")])
  assert line.exc_info is None and line.getMessage().count("\n") == 0
  assert "step 4 stays" in line.getMessage() and "checkpoints is missing" in line.getMessage()


def test_an_empty_checkpoint_is_one_line(source, caplog):
  (line,) = watched(source, caplog, lambda _: (source.folder / "5").mkdir())
  assert "checkpoints/5 is no whole checkpoint" in line.getMessage()


def test_a_folder_that_cannot_be_listed_is_one_line(source, caplog):
  def change(_):
    source.refusal = "not yours"

  (line,) = watched(source, caplog, change)
  assert "not yours" in line.getMessage()


def test_a_server_of_what_is_promoted_follows_the_pointer(small_run, tmp_path):
  """The run's best until something is promoted; then that, and what a rollback names."""
  workdir = shutil.copytree(small_run, tmp_path / "run")
  config = dataclasses.replace(load_config(str(workdir)), workdir=str(workdir))
  model = registry.build(config, 24)
  source = CheckpointSource(config, model, "promoted")
  assert source.newest() == 4
  mine = workdir / "live" / "learner" / "checkpoints"
  for step in ("8", "12"):  # the learner's own: of a numbering that goes on from the run's
    shutil.copytree(workdir / "checkpoints" / "4", mine / step)
  promotions = Promotions(str(mine.parent))
  seen = [source.listing()]
  for step in (8, 12):
    promotions.promote(step)
    seen.append(source.listing())
    assert source.newest() == step
  shutil.rmtree(mine)
  promotions.use(8)
  assert source.newest() == 8 and len({*seen, source.listing()}) == 3
  kernels = [source.load(step)["processor"] for step in (4, 8)]
  chex.assert_trees_all_equal(*kernels)
  promotions.use(None)
  assert source.newest() == 4
  assert CheckpointSource(config, model, "best").newest() == 4
