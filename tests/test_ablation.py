"""The ablation from flags: tunes on valid, scores seeds on test, goes on where it was stopped,
makes nothing twice.
"""

import dataclasses
import json
import types

import pytest

from gr4ad_jax.config import Config, ConfigError, with_knobs
from gr4ad_jax.ranking import list_cache
from gr4ad_jax.runs import run
from gr4ad_jax.studies import ablation
from tests import tiny

pytestmark = [pytest.mark.usefixtures("compile_cache"), pytest.mark.slow]
ROWS = "vsl,vsl_decode_value,rspo"
SMALL = (
  *tiny.SETTINGS,
  "--layers=1",
  "--lazy_layers=0",
  "--max_steps=2",
  "--reward_width=8",
  "--reward_bins=3",
  "--reward_epochs=1",
  "--policy_candidates=4",
  "--other_candidates=1",
  "--candidate_beams=8",
  "--seeds=1",
  f"--rows={ROWS}",
  "--preference_epochs=1",
  "--fit_splits=train+valid",
)


SIZES = {len(row.settings()) for row in ablation.ROWS if row.grid}


def test_grids_are_of_one_size():
  assert SIZES == {3}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A table of three rows, one of them trained from the start, with two settings each."""
  grids = {
    "vsl_decode_value": {"value_power": (0.3, 0.6)},
    "rspo": {"preference_weight": (1.0, 3.0)},
  }
  rows = tuple(dataclasses.replace(row, grid=grids.get(row.name, {})) for row in ablation.ROWS)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(ablation, "ROWS", rows)
    yield _made(tmp_path_factory)


def _made(tmp_path_factory):
  source = tiny.write_log(tmp_path_factory.mktemp("log"))
  arguments = (*tiny.source_flags(source), *SMALL, f"--workdir={source / 'ablation'}")
  done = tiny.run("ablate", *arguments)
  assert done.status == 0, done.err
  return source / "ablation", arguments, done


@pytest.mark.long
def test_table_chart_and_settings_are_written(made):
  folder, _, done = made
  found = json.loads((folder / "ablation.json").read_text())
  assert list(found["rows"]) == ROWS.split(",") and found["seeds"] == [1]
  assert len(found["tried"]["rspo"]) == len(found["tried"]["vsl_decode_value"]) == 2
  assert found["chosen"]["rspo"] in [one["settings"] for one in found["tried"]["rspo"]]
  best = max(found["tried"]["rspo"], key=lambda one: one["revenue@10"])
  assert found["chosen"]["rspo"] == best["settings"]
  assert (folder / "ablation.md").read_text() in done.out + "\n" and (
    folder / "ablation.png"
  ).exists()
  told = done.err.splitlines()
  assert (
    told.count(f"training {folder}/tune/rspo_1") == 1
    and f"training the reward model of {folder}/tune/vsl" in told
  )
  assert len([line for line in told if line.startswith("valid, rspo {'preference_weight': ")]) == 2


@pytest.mark.long
def test_rows_start_from_the_vsl_run_of_their_seed_and_group(made):
  folder, _, _ = made
  for group, fitted in (("tune", "train"), ("seed1", "train+valid")):
    name = "rspo_0" if group == "tune" else "rspo"
    config = json.loads((folder / group / name / "config.json").read_text())
    assert config["training"]["init_from"] == str(folder / group / "vsl")
    assert config["training"]["fit_splits"] == fitted and config["objective"]["objective"] == "rspo"
    assert config["training"]["seed"] == (1 if group == "seed1" else 0)
  start = json.loads((folder / "seed1" / "vsl" / "config.json").read_text())
  assert start["objective"]["objective"] == "vsl" and start["training"]["init_from"] == ""


@pytest.mark.long
def test_a_second_call_trains_nothing(made, monkeypatch):
  folder, arguments, _ = made
  before = json.loads((folder / "ablation.json").read_text())
  monkeypatch.setattr(run, "train", lambda *_: pytest.fail("trained again"))
  assert tiny.run("ablate", *arguments).status == 0
  assert json.loads((folder / "ablation.json").read_text()) == before


def test_unknown_rows_and_seeds_are_refused(tmp_path):
  with pytest.raises(ConfigError, match="--rows=magic is not allowed: any of base, vsl"):
    ablation.choose_rows(["magic"])
  done = tiny.run("ablate", f"--workdir={tmp_path}", "--seeds=a")
  assert done.status == 2 and "--seeds=a is not allowed" in done.err


@pytest.mark.parametrize(
  ("model", "flag", "message"),
  [
    ("gr4ad", "--reward=magic", "--reward=magic is not allowed"),
    ("tiger", "--rows=rspo", "--objective=rspo is not allowed: --model=tiger learns no lists"),
    (
      "tiger",
      "--rows=vsl_decode_value",
      "--order=blend is not allowed: --model=tiger does not read it",
    ),
  ],
)
def test_what_a_row_would_refuse_is_refused_before_anything_is_trained(
  tmp_path, model, flag, message
):
  tiny.write_log(tmp_path)
  small = tiny.settings(model, *SMALL, flag)
  done = tiny.run("ablate", *tiny.source_flags(tmp_path), *small, f"--workdir={tmp_path}/ablation")
  assert done.status == 2 and message in done.err and not (tmp_path / "ablation").exists()


def test_a_stop_while_the_reward_model_learns_stops_all(tmp_path, monkeypatch):
  plan = ablation.Plan(Config(workdir=str(tmp_path)))
  stopped = types.SimpleNamespace(status="preempted")
  whole = ablation.Ablation(plan, lambda *_: pytest.fail("trained on"), lambda *_: stopped)
  monkeypatch.setattr(whole, "_rank", lambda *_: None)
  monkeypatch.setattr(whole._runner, "inputs", lambda _: None)
  config = dataclasses.replace(plan.config, workdir=f"{tmp_path}/tune/rspo_0")
  config = with_knobs(config, {"init_from": f"{tmp_path}/tune/vsl", "objective": "rspo"})
  with pytest.raises(list_cache.Stopped, match="stopped in the reward model of .*tune/vsl"):
    whole._make_start(config)
