"""A sweep's setting is the run of its knobs; what was tried is kept; what is not allowed is told
before any work.
"""

import json
import shutil
import types

import jax
import numpy as np
import pytest

from gr4ad_jax.config import ConfigError, load_config
from gr4ad_jax.ranking import list_cache
from gr4ad_jax.requests import inputs as inputs_lib
from gr4ad_jax.studies import sweep
from gr4ad_jax.training import loop
from tests import tiny
from tests.test_preference import config_of, start, trained  # noqa: F401 - `start` is a fixture

pytestmark = [pytest.mark.usefixtures("compile_cache"), pytest.mark.slow]
LISTS = {"objective": "xent", "refresh_steps": 100, "max_steps": 4}
SETTINGS = [
  {"objective": "rspo", "preference_weight": 3.0, "beta": 0.5, "delta": -1.0, "seed": 1},
  {
    "objective": "unified",
    "preference_weight": 2.0,
    "z_max": 0.5,
    "learning_rate": 2e-3,
    "reference": False,
  },
  {"objective": "grpo", "preference_weight": 5.0, "grpo_kl": 0.5, "reward_power": 0.5},
]


@pytest.fixture(scope="module")
def made(start, tmp_path_factory):  # noqa: F811
  config = config_of(start, tmp_path_factory.mktemp("sweep"), **LISTS)
  return sweep.Sweep(config, inputs_lib.prepare_inputs(config))


@pytest.mark.long
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_ends_as_the_run_of_its_knobs(made, start, setting, tmp_path):  # noqa: F811
  alone = trained(config_of(start, tmp_path, **{**LISTS, **setting})).state.params
  ours, theirs, before = (
    np.concatenate([np.ravel(x) for x in jax.tree.leaves(p)])
    for p in (made.train(setting), alone, made.train({"objective": "xent", "learning_rate": 0.0}))
  )
  assert np.linalg.norm(ours - theirs) < 0.02 * np.linalg.norm(
    theirs - before
  )  # AdamW enlarges rounding
  other = np.concatenate(
    [np.ravel(x) for x in jax.tree.leaves(made.train({**setting, "objective": "dpo"}))]
  )
  assert np.linalg.norm(other - theirs) > 0.1 * np.linalg.norm(theirs - before)


@pytest.mark.long
def test_rewards_follow_their_knobs(made):
  changed = [
    float(np.abs(made._rewards(values)).sum()) for values in ((1.0, 0.0, 1.0), (1.0, 0.0, 2.0))
  ]
  assert changed[0] != changed[1]


@pytest.fixture(scope="module")
def arguments(start, tmp_path_factory):  # noqa: F811
  folder = tmp_path_factory.mktemp("binary")
  (folder / "settings.json").write_text(json.dumps(SETTINGS[:1]))
  saved = load_config(start).data
  knobs = (
    "--reward=logged",
    "--max_steps=2",
    "--policy_candidates=6",
    "--other_candidates=2",
    "--candidate_beams=8",
  )
  files = (
    f"--dataset={saved.dataset}",
    f"--ads_path={saved.ads_path}",
    f"--events_path={saved.events_path}",
  )
  return folder, (
    *files, f"--data_dir={saved.data_dir}", *tiny.SETTINGS, "--layers=1", "--lazy_layers=0", *knobs,
    f"--init_from={start}", f"--settings={folder / 'settings.json'}", f"--workdir={folder / 'out'}",
  )  # fmt: skip


@pytest.mark.long
def test_the_binary_keeps_what_it_tried(arguments, monkeypatch):
  folder, flags = arguments
  done = tiny.run("sweep", *flags)
  assert done.status == 0, done.err
  table = (folder / "out" / "sweep.md").read_text()
  assert (
    table in done.out
    and "the start" in table
    and "objective=rspo, preference_weight=3.0, beta=0.5" in table
  )
  monkeypatch.setattr(sweep, "Sweep", None)  # nothing is trained again
  again = tiny.run("sweep", *flags)
  assert again.status == 0 and done.out.endswith(again.out)
  found = json.loads((folder / "out" / "sweep.json").read_text())["found"]
  assert [one["setting"] for one in found] == [None, SETTINGS[0]]


def test_what_would_judge_itself_is_refused(arguments):
  _, flags = arguments
  done = tiny.run("sweep", *flags, "--fit_splits=train+valid")
  assert (
    done.status == 2
    and "--fit_splits=train+valid is not allowed: settings are judged by valid" in done.err
  )


def test_a_start_that_knows_valid_is_refused(arguments, start, tmp_path):  # noqa: F811
  _, flags = arguments
  known = shutil.copytree(start, tmp_path / "known")
  saved = json.loads((known / "config.json").read_text())
  saved["training"]["fit_splits"] = "train+valid"
  saved.pop("checksums")
  (known / "config.json").write_text(json.dumps(saved))
  (known / "SHA256SUMS").unlink()  # as of a run from before there were checksums
  done = tiny.run("sweep", *flags, f"--init_from={known}", f"--workdir={tmp_path / 'out'}")
  assert (
    done.status == 2
    and f"--init_from={known} is not allowed: its run has learned from valid" in done.err
  )
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("settings", "said"),
  [
    (
      '[{"objective": "rspo", "heads": 2}]',
      "entry 0: 'heads' is not allowed: any of objective, reference",
    ),
    ('[{"objective": "xent"}, {"objective": "vsl"}]', "entry 1: objective='vsl' is not allowed"),
    ('[{"objective": "rspo", "beta": -1}]', "entry 0: --beta=-1"),
    ("{}", "a JSON list of objects"),
    ("[", "is not allowed: Expecting"),
  ],
)
def test_bad_settings_are_told(start, tmp_path, settings, said):  # noqa: F811
  path = tmp_path / "settings.json"
  path.write_text(settings)
  with pytest.raises(ConfigError, match="settings.json") as raised:
    sweep.read_settings(str(path), config_of(start, tmp_path))
  assert said in str(raised.value)


def test_results_of_other_lists_stay_beside(start, tmp_path):  # noqa: F811
  first, second = (config_of(start, tmp_path, policy_candidates=count) for count in (4, 6))
  scores = {"valid": {"recall@10": 0.1}, "by_value": {"recall@10": 0.2}, "entropy": 1.0}
  sweep.Results(str(tmp_path), first).add(SETTINGS[0], scores)
  results = sweep.Results(str(tmp_path), second)
  assert not results.has(SETTINGS[0]) and sweep.Results(str(tmp_path), first).has(SETTINGS[0])
  results.add(SETTINGS[0], scores)
  assert "policy_candidates=6, objective=rspo" in (tmp_path / "sweep.md").read_text()


def _steep(arguments):
  """The sweep of one setting whose rate is far too high."""
  folder, flags = arguments
  settings = [{"objective": "xent", "learning_rate": 1e30}]
  (folder / "steep.json").write_text(json.dumps(settings))
  steep = [flag for flag in flags if not flag.startswith(("--settings", "--workdir"))]
  return tiny.run("sweep", *steep, f"--settings={folder}/steep.json", f"--workdir={folder}/steep")


@pytest.mark.long
def test_a_setting_that_diverges_is_told_in_a_line(arguments):
  done = _steep(arguments)
  assert done.status == 1
  assert "error: objective=xent, learning_rate=1e+30: loss nan, gradient norm nan" in done.err


@pytest.mark.parametrize(
  ("raised", "status"),
  [(loop.DivergedError("loss nan"), 1), (list_cache.Stopped("stopped in it"), 0)],
)
def test_what_ends_a_sweep_is_told_in_a_line(arguments, monkeypatch, raised, status):
  def stop(setting):
    raise raised

  monkeypatch.setattr(sweep, "Sweep", lambda *_: types.SimpleNamespace(run=stop))
  done = _steep(arguments)
  assert done.status == status
  told = done.out if status == 0 else done.err
  assert told.splitlines()[-1].endswith(("stopped in it", ": loss nan"))
