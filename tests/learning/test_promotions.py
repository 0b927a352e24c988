"""Promotions: a pointer and copies that outlive the learner's own checkpoints."""

import json
import pathlib
import shutil

import pytest

from gr4ad_jax.config import ConfigError
from gr4ad_jax.learning.promotions import Promotions


@pytest.fixture
def folder(tmp_path):
  """A learner's folder with checkpoints of one file each."""
  for step in range(10, 40):
    place = tmp_path / "checkpoints" / str(step) / "params"
    place.mkdir(parents=True)
    (place / "array").write_text(f"of {step}")
  return tmp_path


def content(folder, kind, step):
  return (folder / kind / str(step) / "params" / "array").read_text()


def test_what_is_in_use_stays_when_the_learner_lets_go_of_it(folder):
  promotions = Promotions(str(folder))
  assert promotions.in_use is None and promotions.kept == []
  promotions.promote(10)
  shutil.rmtree(folder / "checkpoints" / "10")
  assert promotions.in_use == 10 and content(folder, "promoted", 10) == "of 10"
  promotions.promote(11)
  promotions.promote(11)  # as after a kill right behind the first
  assert Promotions(str(folder)).in_use == 11 and promotions.kept == [10, 11]


def test_a_former_one_can_be_put_back_and_an_unknown_one_cannot(folder):
  promotions = Promotions(str(folder))
  for step in (10, 11, 12):
    promotions.promote(step)
  promotions.use(10)
  assert promotions.in_use == 10
  with pytest.raises(ConfigError, match="checkpoint 99 is not there; .* promoted: 10, 11, 12"):
    promotions.use(99)
  promotions.use(None)
  assert promotions.in_use is None and promotions.kept == [10, 11, 12]


def test_a_kill_in_the_middle_leaves_the_old_pointer_whole(folder, monkeypatch):
  promotions = Promotions(str(folder))
  promotions.promote(10)

  def killed(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr("os.rename", killed)
  with pytest.raises(KeyboardInterrupt):
    promotions.promote(11)
  monkeypatch.undo()
  assert json.loads((folder / "promoted.json").read_text())["step"] == 10
  assert promotions.kept == [10]
  promotions.promote(11)
  assert promotions.kept == [10, 11] and content(folder, "promoted", 11) == "of 11"


def test_only_the_latest_are_kept_beside_the_one_in_use(folder):
  promotions = Promotions(str(folder))
  for step in range(10, 30):
    promotions.promote(step)
  assert promotions.kept == list(range(20, 30))
  for step in range(30, 36):
    assert promotions.put_aside(step).endswith(f"refused/{step}")
  assert sorted(path.name for path in (folder / "refused").iterdir()) == ["33", "34", "35"]


def test_neighbors_come_and_go_with_their_checkpoint(folder):
  """They are there before the pointer is, and are written once."""
  promotions = Promotions(str(folder))
  written = []

  def keep(place):
    assert promotions.in_use != 11
    written.append(place)
    (folder / "neighbors" / "11").mkdir(parents=True)

  promotions.promote(10)
  assert promotions.neighbors(10) is None
  promotions.promote(11, keep)
  promotions.promote(11, keep)  # as after a kill right behind the first
  assert written == [promotions.neighbors(11)] == [str(folder / "neighbors" / "11")]
  for step in range(12, 30):
    promotions.promote(step)
  assert 11 not in promotions.kept and promotions.neighbors(11) is None


@pytest.mark.parametrize("kind", ["promoted", "refused"])
def test_a_kill_while_old_ones_are_deleted_leaves_no_half_one(folder, monkeypatch, kind):
  promotions = Promotions(str(folder))
  keep = promotions.promote if kind == "promoted" else promotions.put_aside
  for step in range(10, 20):
    keep(step)
  whole = set((folder / kind).iterdir())

  def killed(path, **_):
    # Of what was moved away; nothing of it where a clean-up finds no such folder.
    if (pathlib.Path(path) / "10").exists() or (pathlib.Path(path) / "17").exists():
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
      keep(20)
  left = set((folder / kind).iterdir())
  assert left < whole | {folder / kind / "20"} and len(left) == len(whole)
  assert all((place / "params" / "array").exists() for place in left)
  keep(21)
  assert not (folder / f"{kind}_deleted").exists() and len(promotions.kept or left) == len(whole)
