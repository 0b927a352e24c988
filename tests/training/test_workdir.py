"""What a workdir refuses, and what it lets pass."""

import dataclasses

import pytest

from gr4ad_jax.config import Config, ConfigError, SidConfig
from gr4ad_jax.training import workdir
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
