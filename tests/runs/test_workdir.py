"""What a workdir refuses, and what it lets pass."""

import dataclasses
import os
import pathlib

import pytest

from gr4ad_jax.config import Config, ConfigError, SidConfig, load_config
from gr4ad_jax.runs import workdir
from tests.whole_files import assert_replaced_whole


def of(folder, **sid):
  return dataclasses.replace(Config(), workdir=str(folder), sid=SidConfig(**sid))


def test_swing_s_memory_may_change_and_its_file_once_the_codes_are_made(tmp_path):
  workdir.save_config(of(tmp_path))
  workdir.check_workdir(of(tmp_path, swing_memory_mb=64))
  with pytest.raises(ConfigError, match="--swing_path=other.npz is not allowed"):
    workdir.check_workdir(of(tmp_path, swing_path="other.npz"))
  (tmp_path / "checkpoints" / "10").mkdir(parents=True)
  workdir.check_workdir(of(tmp_path, swing_memory_mb=64, swing_path="other.npz"))
  with pytest.raises(ConfigError, match=r"--swing_alpha=0.5 is not allowed: the run in .* has 1"):
    workdir.check_workdir(of(tmp_path, swing_alpha=0.5))


def test_the_config_is_replaced_whole(tmp_path):
  one, other = of(tmp_path), of(tmp_path, swing_memory_mb=64)
  path = str(tmp_path / "config.json")
  assert_replaced_whole(path, lambda: workdir.save_config(one), lambda: workdir.save_config(other))


@pytest.mark.parametrize("name", ["run [v1]", "run*", "ru?n", "[/run", "ru\\n"])
def test_a_folder_in_which_no_checkpoint_can_be_written_is_refused(tmp_path, monkeypatch, name):
  folder = tmp_path / name
  for action in (workdir.check_workdir, workdir.save_config):
    with pytest.raises(
      ConfigError, match=r"the whole path must be without \*, \?, \[ and \\"
    ) as caught:
      action(of(folder))
    assert str(folder) in str(caught.value)
  assert not folder.exists()
  # The folder that a relative path starts from counts, too.
  (tmp_path / "my [project]").mkdir()
  monkeypatch.chdir(tmp_path / "my [project]")
  with pytest.raises(ConfigError, match="--workdir=run is not allowed"):
    workdir.check_workdir(of("run"))


@pytest.mark.parametrize("name,kind", [
  ("checkpoints", "directory"), ("tensorboard", "directory"), ("index", "directory"),
  ("lock", "file"), ("metrics.jsonl", "file"), ("config.json", "file"), ("SHA256SUMS", "file"),
])  # fmt: skip
def test_what_stands_in_the_way_of_a_run_s_files_is_named_before_any_work(tmp_path, name, kind):
  things = [lambda path: path.symlink_to("/nowhere"), os.mkfifo]
  things.append(pathlib.Path.touch if kind == "directory" else pathlib.Path.mkdir)
  for make in things:
    make(tmp_path / name)
    with pytest.raises(ConfigError) as error:
      workdir.check_workdir(of(tmp_path))
    message = f"--workdir={tmp_path} is not allowed: {name} in it is no {kind}"
    assert str(error.value) == message
    if name == "config.json":
      with pytest.raises(FileNotFoundError, match="holds no config.json"):
        load_config(str(tmp_path))
    (tmp_path / name).rmdir() if (tmp_path / name).is_dir() else (tmp_path / name).unlink()


def test_a_run_that_was_moved_there_can_be_read_but_not_trained(tmp_path):
  workdir.save_config(of(tmp_path / "run"))
  (tmp_path / "run").rename(tmp_path / "run[1]")
  workdir.check_workdir(of(tmp_path / "run[1]"))
  with pytest.raises(ConfigError, match="the whole path"):
    workdir.save_config(of(tmp_path / "run[1]"))


def test_other_letters_are_allowed(tmp_path):
  for name in ("a b", "x{1}", "é%", "]"):
    workdir.save_config(of(tmp_path / name))
    assert (tmp_path / name / "config.json").is_file()
