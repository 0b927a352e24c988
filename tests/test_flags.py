"""Flags become the config: defaults, then the preset or the saved run, then what was given."""

import dataclasses
import pathlib
import subprocess
import sys

import jax
import pytest
from absl import flags as absl_flags

from experiments import flags
from gr4ad_jax import config as config_lib
from gr4ad_jax.config import presets
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.models.gr4ad import GR4AD
from gr4ad_jax.requests import request_task
from gr4ad_jax.runs import workdir as workdir_lib

_ROOT = pathlib.Path(__file__).parents[1]
_BINARY = """
from experiments import flags
from gr4ad_jax.data import schema
flags.define_flags()
def main(argv):
  del argv
  config = flags.config_from_flags()
  if config.data.ads_path:
    raise schema.DataError("ads.csv, row 3")
  print("width", config.model.width)
flags.run(main)
"""


def _parsed(*arguments: str) -> absl_flags.FlagValues:
  values = absl_flags.FlagValues()
  flags.define_flags(values)
  values(["binary", *arguments])
  return values


def test_every_knob_has_a_flag_with_its_default():
  assert flags.config_from_flags(_parsed()) == config_lib.Config()


def test_each_type_of_flag():
  values = _parsed(
    "--layers=4", "--dropout=0.2", "--remat=dots", "--noreference", "--history_bias",
    "--last_level=hash", "--beams=4, 8,16", "--behaviors=view,buy", "--workdir=runs/x",
  )  # fmt: skip
  config = flags.config_from_flags(values)
  assert config.workdir == "runs/x"
  assert (config.model.layers, config.model.dropout) == (4, 0.2)
  assert (config.preference.reference, config.model.history_bias) == (False, True)
  assert config.training.remat == "dots"
  assert config.sid.last_level == "hash"
  assert (config.search.beams, config.data.behaviors) == ((4, 8, 16), ("view", "buy"))


def test_given_flags_win_over_the_preset_even_at_the_default_value():
  default = config_lib.ModelConfig().layers
  config = flags.config_from_flags(
    _parsed(f"--layers={default}", "--preset=0.03b", "--lazy_layers=1")
  )
  assert config.model == dataclasses.replace(
    presets.PRESETS["0.03b"], layers=default, lazy_layers=1
  )


def test_flagfiles_nest_and_later_flags_win(tmp_path):
  (tmp_path / "base.flags").write_text("# a comment\n--layers=5\n--seed=7\n--width=32\n")
  (tmp_path / "run.flags").write_text(f"--flagfile={tmp_path}/base.flags\n--seed=8\n")
  config = flags.config_from_flags(_parsed(f"--flagfile={tmp_path}/run.flags", "--width=128"))
  assert (config.model.layers, config.training.seed, config.model.width) == (5, 8, 128)


def test_workdir_config_then_given_search_flags(tmp_path):
  trained = flags.config_from_flags(_parsed(f"--workdir={tmp_path}", "--preset=0.03b", "--seed=3"))
  workdir_lib.save_config(trained)
  assert flags.config_from_workdir(_parsed(f"--workdir={tmp_path}")) == trained
  config = flags.config_from_workdir(
    _parsed(f"--workdir={tmp_path}", "--beams=4,8,16", "--compute_dtype=float32")
  )
  assert (config.search.beams, config.model.compute_dtype, config.training.seed) == (
    (4, 8, 16),
    "float32",
    3,
  )
  same = flags.config_from_workdir(_parsed(f"--workdir={tmp_path}", "--preset=0.03b", "--layers=9"))
  assert same.model == trained.model


def test_init_from_gives_data_codes_model_and_batch_size_and_no_other_training(tmp_path):
  start = _parsed(
    f"--workdir={tmp_path}", "--width=64", "--targets=5", "--batch_size=16", "--learning_rate=0.5"
  )
  workdir_lib.save_config(flags.config_from_flags(start))
  config = flags.config_from_flags(_parsed(f"--init_from={tmp_path}", "--workdir=runs/next"))
  assert (config.model.width, config.data.targets) == (64, 5)
  assert config.training.batch_size == 16
  assert config.training.learning_rate == config_lib.TrainConfig().learning_rate
  other = flags.config_from_flags(_parsed(f"--init_from={tmp_path}", "--batch_size=8"))
  assert other.training.batch_size == 8


def test_another_model_than_the_runs_is_refused(tmp_path):
  trained = ["--layers=3", "--lazy_layers=2", "--width=64", "--heads=4", "--codebooks=8,8,6"]
  workdir_lib.save_config(flags.config_from_flags(_parsed(f"--workdir={tmp_path}", *trained)))
  with pytest.raises(config_lib.ConfigError, match="--layers=4 is not allowed: .* has 3"):
    flags.config_from_workdir(_parsed(f"--workdir={tmp_path}", "--layers=4"))
  with pytest.raises(config_lib.ConfigError, match="--width=320 is not allowed: .* has 64"):
    flags.config_from_workdir(
      _parsed(f"--workdir={tmp_path}", "--preset=0.03b", "--layers=3", "--lazy_layers=2")
    )
  with pytest.raises(
    config_lib.ConfigError, match="--codebooks=8,8,8 is not allowed: .* has 8,8,6"
  ):
    workdir_lib.save_config(
      flags.config_from_flags(_parsed(f"--workdir={tmp_path}", *trained, "--codebooks=8,8,8"))
    )


def test_of_a_trained_run_only_the_search_and_the_free_knobs_differ(tmp_path):
  workdir_lib.save_config(flags.config_from_flags(_parsed(f"--workdir={tmp_path}", "--seed=3")))
  (tmp_path / config_lib.CHECKPOINTS / "7").mkdir(parents=True)
  for given in (
    "--seed=4",
    "--fit_splits=train+valid",
    "--history_slots=5",
    "--target_behavior=purchase",
  ):
    with pytest.raises(
      config_lib.ConfigError, match=f"{given.split('=')[0]}=.* is not allowed: the run in"
    ) as error:
      flags.config_from_workdir(_parsed(f"--workdir={tmp_path}", given))
    assert "\n" not in str(error.value)
  given = ("--seed=3", "--value_power=0.5", "--beams=4,4,4", "--data_dir=elsewhere", "--epochs=9")
  config = flags.config_from_workdir(_parsed(f"--workdir={tmp_path}", *given))
  assert (config.search.value_power, config.data.data_dir, config.training.epochs) == (
    0.5,
    "elsewhere",
    9,
  )


@pytest.mark.parametrize("size", ["0.03b", pytest.param("0.08b", marks=pytest.mark.long)])
def test_a_large_preset_has_its_size(size):
  config = flags.config_from_flags(_parsed(f"--preset={size}"))
  assert (config.sid.codebooks, config.search.beams) == ((16384, 4096, 1024), (512, 512, 512))
  shapes = jax.eval_shape(lambda: request_task.init_params(GR4AD.build(config, 0), config))
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  assert abs(count / (1e9 * float(size[:-1])) - 1) < 0.1
  given = flags.config_from_flags(_parsed(f"--preset={size}", "--codebooks=8,8", "--beams=4,4"))
  assert (given.sid.codebooks, given.search.beams) == ((8, 8), (4, 4))


def test_workdir_without_a_run_is_told(tmp_path):
  with pytest.raises(FileNotFoundError, match="config.json"):
    flags.config_from_workdir(_parsed(f"--workdir={tmp_path}"))
  with pytest.raises(config_lib.ConfigError, match="--workdir="):
    flags.config_from_workdir(_parsed())


def _run(*arguments: str) -> subprocess.CompletedProcess:
  command = [sys.executable, "-c", _BINARY, *arguments]
  return subprocess.run(command, capture_output=True, text=True, check=False, cwd=_ROOT)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--layer=3"], "Did you mean: layers"),
    # Each starts a process.
    *(
      pytest.param(*case, marks=pytest.mark.long)
      for case in (
        (["--ads_path=ads.csv"], "ads.csv, row 3"),
        (["--layers=three"], "a whole number, at least 1"),
        (["--layers=3", "--lazy_layers=3"], "--lazy_layers=3 is not allowed: 0 to 2, as --layers"),
        (["--dataset=movies"], "'online_retail' or"),
        (["--flagfile=absent.flags"], "absent.flags"),
        (["layers"], "'layers' is not a flag"),
      )
    ),
  ],
)
def test_mistakes_end_with_one_line_and_status_2(arguments, message):
  done = _run(*arguments)
  assert done.returncode == 2
  assert (
    done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1
  )
  assert not done.stdout


@pytest.mark.parametrize(
  ("error", "status"),
  [
    (OSError(28, "No space left on device", "runs/a"), 3),
    (PermissionError(13, "Permission denied", "runs/a"), 3),
    (OSError(116, "Stale file handle"), 3),
    (OSError("runs/a lost a file while it was trained"), 3),
    (FileNotFoundError(2, "No such file or directory", "absent"), 2),
    (NotADirectoryError(20, "Not a directory", "file/x"), 2),
    (FileNotFoundError("runs/a holds no whole checkpoint"), 2),
    (config_lib.ConfigError("--x is not allowed"), 2),
    (ImportError("no such extra"), 2),
    (DataError("ads.csv, row 3"), 2),
  ],
)
def test_trouble_with_the_disk_is_no_mistake(error, status, monkeypatch, capsys):
  def main(_):
    raise error

  monkeypatch.setattr(flags.app, "run", lambda left, **_: sys.exit(left(["binary"])))
  monkeypatch.setattr(flags.flags, "FLAGS", _parsed_with_verbosity())
  with pytest.raises(SystemExit) as end:
    flags.run(main)
  assert end.value.code == status and capsys.readouterr().err == f"error: {error}\n"


def _parsed_with_verbosity() -> absl_flags.FlagValues:
  values = absl_flags.FlagValues()
  absl_flags.DEFINE_integer("verbosity", 0, "", flag_values=values)
  values(["binary", "--verbosity=0"])
  return values


@pytest.mark.long  # so do those of every binary that a test runs
def test_a_good_command_line_runs_main():
  done = _run("--preset=0.08b")
  assert (done.returncode, done.stdout) == (0, "width 576\n")
