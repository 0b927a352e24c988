"""What may stand in one table: seeds of the scored run, other runs on the same data, nothing
that learned the split.
"""

import dataclasses
import json
import os
import shutil
from unittest import mock

import jax
import numpy as np
import pytest

from gr4ad_jax import files
from gr4ad_jax.config import ConfigError, load_config, to_json
from gr4ad_jax.data import ad_store
from gr4ad_jax.decoding.ranker import Ranking
from gr4ad_jax.evaluation import parts, plots, protocols
from gr4ad_jax.ranking import scoring
from gr4ad_jax.requests import inputs as inputs_lib
from gr4ad_jax.requests import known_events, request_task
from gr4ad_jax.training import trainer
from tests import tiny

pytestmark = pytest.mark.usefixtures("compile_cache")


@pytest.fixture(scope="module")
def main(small_run, tmp_path_factory):
  return shutil.copytree(small_run, tmp_path_factory.mktemp("runs") / "base_seed0")


@pytest.fixture(scope="module")
def inputs(main):
  return inputs_lib.prepare_inputs(load_config(str(main)))


@pytest.fixture
def copied(main, tmp_path):
  """Makes a run of the same parameters under another name, with other settings in its
  config.json.
  """

  def copy(name, **settings):
    folder = tmp_path / name
    shutil.copytree(main, folder)
    config = load_config(str(folder))
    for section in ("data", "model", "training", "search"):
      known = {
        key: value for key, value in settings.items() if hasattr(getattr(config, section), key)
      }
      config = dataclasses.replace(
        config, **{section: dataclasses.replace(getattr(config, section), **known)}
      )
    files.write_text(str(folder / "config.json"), to_json(config))
    return str(folder)

  return copy


@pytest.fixture
def fake_ranks(monkeypatch):
  """Replaces the models by a list of ads that starts with the run's seed; returns the configs
  that were ranked.
  """
  ranked = []

  def rank_run(config, inputs, requests, k):
    ranked.append(config)
    ad_RK = np.full((len(requests), k), -1, np.int32)
    ad_RK[:, 0] = config.training.seed
    return Ranking(ad_RK, *np.zeros((3, *ad_RK.shape), np.float32))

  monkeypatch.setattr(scoring, "rank_run", rank_run)
  return ranked


def test_metrics_say_what_was_scored(main, inputs, fake_ranks, no_pictures):
  config = load_config(str(main))
  scoring.evaluate_run(config, inputs, "test")
  found = json.loads((main / "eval" / "metrics.json").read_text())
  assert found["checkpoint"] == 4
  tiny.assert_settings_told(found)


def test_without_matplotlib_there_are_figures_and_a_word(
  main, inputs, fake_ranks, monkeypatch, caplog
):
  missing = ImportError("matplotlib is missing: pip install 'gr4ad_jax[plots]'")
  monkeypatch.setattr(plots, "_matplotlib", mock.Mock(side_effect=missing))
  config = load_config(str(main))
  shutil.rmtree(main / "eval", ignore_errors=True)
  scoring.evaluate_run(config, inputs, "test")
  assert os.listdir(main / "eval") == ["metrics.json"]
  assert caplog.messages[-1:] == [f"no pictures in {main / 'eval'}: {missing}"]


def test_runs_named_alike_are_seeds_of_one_system(main, inputs, copied, fake_ranks, no_pictures):
  config = load_config(str(main))
  config = dataclasses.replace(config, search=dataclasses.replace(config.search, order="blend"))
  beside = [
    copied("base_seed1", seed=1),
    copied("base_seed2", seed=2),
    copied("biased_seed0", history_bias=True),
    copied("biased_seed1", history_bias=True, seed=1),
  ]
  found, ranking = scoring.evaluate_run(config, inputs, "test", beside)
  assert (found["seeds"]["gr4ad"], found["seeds"]["biased"]) == (3, 2)
  assert (found["seen"]["gr4ad"], found["seen"]["biased"]) == ("left", "biased")
  assert list(found["systems"])[:2] == ["gr4ad", "biased"] and "biased" in found["ahead"]
  assert (ranking.ad_RK[:, 0] == 0).all()
  orders = ["blend"] * 3 + ["likelihood"] * 2
  assert [other.search.order for other in fake_ranks] == 2 * orders  # as it is, without seen ads
  assert [other.search.seen_ads for other in fake_ranks] == ["left"] * 5 + ["masked"] * 5


@pytest.mark.long
def test_in_one_table_all_systems_treat_seen_ads_alike(main, inputs, copied, fake_ranks):
  config = load_config(str(main))
  masked = dataclasses.replace(config.search, seen_ads="masked", seen_days=400.0)
  config = dataclasses.replace(config, search=masked)
  found, _ = scoring.evaluate_run(config, inputs, "test", [copied("other", history_bias=True)])
  assert set(found["seen"].values()) == {"masked"}
  made = [(other.search.seen_ads, other.search.seen_days) for other in fake_ranks]
  assert made == [("masked", 400.0)] * 2 + [("masked", 0.0)] * 2
  before = parts.seen_before(inputs.dataset, protocols.eval_requests(inputs.dataset, "test"), 400)
  assert len(before.row_E)
  # personal_frequency lists what was taken most often, unless it is left out
  free, _ = scoring.evaluate_run(load_config(str(main)), inputs, "test")
  own = [
    one["systems"]["personal_frequency"]["again"]["recall@10"]["mean"] for one in (found, free)
  ]
  assert own[0] == 0 < own[1]


def test_names_of_the_table_are_kept_apart(main, inputs, copied, fake_ranks):
  config = load_config(str(main))
  for name in ("ease", "gr4ad", "popularity_seed3"):
    with pytest.raises(ConfigError, match=f"{name} is not allowed: the table has a system"):
      scoring.evaluate_run(config, inputs, "test", [copied(name)])
  twice = copied("x")
  for beside in ([str(main)], [twice, twice + "/"]):
    with pytest.raises(ConfigError, match="is in the table already"):
      scoring.evaluate_run(config, inputs, "test", beside)
  with pytest.raises(ConfigError, match="a seed of 'gr4ad' with --copy=off, where .* has context"):
    scoring.evaluate_run(config, inputs, "test", [copied("base_seed7", copy="off")])
  with pytest.raises(FileNotFoundError, match="config.json"):
    scoring.evaluate_run(config, inputs, "test", [str(main / "absent")])
  assert not fake_ranks


def test_a_run_that_learned_from_the_split_is_refused(inputs, copied, fake_ranks):
  learned, plain = copied("learned", fit_splits="train+valid"), copied("plain")
  with pytest.raises(
    ConfigError, match="--split=valid is not allowed: the run in .*learned has learned from it"
  ):
    scoring.evaluate_run(load_config(learned), inputs, "valid")
  with pytest.raises(ConfigError, match="--split=valid is not allowed"):
    scoring.evaluate_run(load_config(plain), inputs, "valid", [learned])
  assert not fake_ranks


def test_what_a_run_learned_from_may_differ_from_those_beside_it(
  inputs, copied, fake_ranks, no_pictures
):
  learned, plain = copied("learned", fit_splits="train+valid"), copied("plain")
  found, _ = scoring.evaluate_run(load_config(learned), inputs, "test", [plain])
  assert {"gr4ad", "plain"} <= set(found["systems"]) and fake_ranks


def test_other_data_are_refused(main, inputs, copied, fake_ranks):
  config, log = load_config(str(main)), inputs.dataset.events
  changed = dataclasses.replace(
    inputs.dataset, events=dataclasses.replace(log, value=log.value + 1)
  )
  with pytest.raises(ConfigError, match="another event log"):
    scoring.evaluate_run(config, dataclasses.replace(inputs, dataset=changed), "test")
  other = copied("other")
  about = f"{other}/features/log.json"
  notes = json.loads(open(about).read()) | {"digest": "0"}
  files.write_json(about, notes)
  known_events.save(f"{other}/features", changed.events)
  with pytest.raises(
    ConfigError, match="--beside=.*other is not allowed: its run was .* another event log"
  ):
    scoring.evaluate_run(config, inputs, "test", [other])
  ads = copied("ads")
  table = inputs.dataset.ads
  ad_store.save_ads(dataclasses.replace(table, price=table.price + 1), f"{ads}/index")
  with pytest.raises(
    ConfigError, match="--beside=.*ads is not allowed: its run was .* another ad table"
  ):
    scoring.evaluate_run(config, inputs, "test", [ads])
  assert not fake_ranks


def test_a_checkpoint_of_another_model_is_one_line(inputs, copied):
  with pytest.raises(ConfigError, match="holds another model") as error:
    scoring.evaluate_run(load_config(copied("wider", width=32)), inputs, "test")
  assert "\n" not in str(error.value)


def test_a_batch_that_the_devices_cannot_share_is_refused(main, inputs, monkeypatch):
  monkeypatch.setattr(jax, "device_count", lambda: 3)
  with pytest.raises(ConfigError, match="--batch_size=8 is not allowed: a multiple of 3, 3 parts"):
    trainer.Trainer(request_task.make(load_config(str(main)), inputs))
