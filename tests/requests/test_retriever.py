"""Contexts whose neighbours' slots are filled by two towers, and runs that have them."""

import dataclasses
import json

import numpy as np
import pytest

from gr4ad_jax import Recommender
from gr4ad_jax.config import ConfigError, load_config, with_knobs
from gr4ad_jax.features.batches import NEIGHBOR, SLOT_FEATURES, USER_FEATURES
from gr4ad_jax.requests import inputs as inputs_lib
from gr4ad_jax.requests import request_task, retriever
from gr4ad_jax.retrieval.towers import Retriever
from gr4ad_jax.zoo import registry
from tests import tiny

pytestmark = pytest.mark.usefixtures("compile_cache")
WIDTH = 4


def drawn(num_ads):
  """Towers of random numbers, that read all features."""
  rng = np.random.default_rng(3)

  def of(*shape):
    return rng.normal(size=shape).astype(np.float32)

  slot = WIDTH + len(SLOT_FEATURES)
  users = len(USER_FEATURES)
  sizes = {
    "user_in": (users, 8), "user_in_bias": (8,), "slot_in": (slot, 8), "slot_in_bias": (8,),
    "slot_kv": (8, 2 * WIDTH), "query": (8, WIDTH), "user_hidden": (8 + 2 * WIDTH, 8),
    "user_hidden_bias": (8,), "user_out": (8, WIDTH),
  }  # fmt: skip
  weights = {name: of(*size) for name, size in sizes.items()}
  return Retriever(of(num_ads, WIDTH), of(num_ads, WIDTH), weights, heads=2)


def test_the_slots_hold_what_the_towers_put_first(small_run):
  config = load_config(str(small_run))
  inputs = inputs_lib.prepare_inputs(config)
  towers = drawn(len(inputs.dataset.ads))
  neighbors = dataclasses.replace(inputs.neighbors, retriever=towers)
  requests = inputs.requests("test")
  plain = inputs.contexts(config, "test").batch(requests)
  inputs = dataclasses.replace(inputs, neighbors=neighbors)
  batch = inputs.contexts(config, "test").batch(requests)

  past = config.data.history_slots
  history = slice(past)
  slots = slice(past, past + config.data.neighbor_slots)
  found, scores = towers.unseen(
    plain.slot_ad_BS[:, history],
    plain.slot_features_BSF[:, history],
    plain.user_features_BF,
    config.data.neighbor_slots,
  )
  np.testing.assert_array_equal(batch.slot_ad_BS[:, slots], found)
  assert (batch.slot_kind_BS[:, slots] == NEIGHBOR).all()
  # Scores are kept in half precision.
  np.testing.assert_allclose(batch.slot_features_BSF[:, slots, -1], scores, rtol=1e-3)
  assert (found != plain.slot_ad_BS[:, slots]).any()
  # All else is as it was.
  for before, after in ((slice(past), slice(past)), (slice(slots.stop, None),) * 2):
    np.testing.assert_array_equal(batch.slot_ad_BS[:, after], plain.slot_ad_BS[:, before])
    np.testing.assert_array_equal(
      batch.slot_features_BSF[:, after], plain.slot_features_BSF[:, before]
    )


def test_a_run_that_is_none_of_two_towers_is_refused(small_run, tmp_path):
  config = with_knobs(load_config(str(small_run)), {"retriever": str(tmp_path)})
  with pytest.raises(ConfigError, match="holds no whole checkpoint; train a two_tower there first"):
    retriever.check(config)
  config = with_knobs(config, {"retriever": str(small_run)})
  with pytest.raises(ConfigError, match="its run is of --model=gr4ad, not of two_tower"):
    retriever.check(config)


@pytest.mark.parametrize(
  "theirs, ours, message",
  [
    ({"history_slots": 5}, {}, "its run has --history_slots=5, and not 8"),
    ({"ad_age": True}, {}, "its run has --ad_age=True, and not False"),
    ({"fit_splits": "train+valid"}, {}, "has learned from valid, which this one is judged by"),
    ({"history_bias": True}, {}, "its run has --history_bias, which unseen ads do without"),
    ({}, {"neighbor_slots": 0}, "--neighbor_slots=0 is not allowed: 1 or more"),
    ({}, {"init_from": "other"}, "--retriever=towers is not allowed: only empty, as the run in"),
    ({}, {"examples_path": "shards"}, "--retriever=towers is not allowed: only empty, as --exampl"),
  ],
)  # fmt: skip
def test_towers_that_do_not_suit_are_refused(small_run, monkeypatch, theirs, ours, message):
  config = with_knobs(load_config(str(small_run)), {"retriever": "towers"} | ours)
  other = with_knobs(config, {"model": "two_tower", "retriever": ""} | theirs)
  monkeypatch.setattr(retriever, "is_trained", lambda _: True)
  monkeypatch.setattr(retriever, "load_config", lambda _: other)
  with pytest.raises(ConfigError) as refused:
    registry.validate(config)
    retriever.check(config)
  assert message in str(refused.value)


@pytest.mark.long
def test_a_run_with_towers_is_a_run_like_any_other(tmp_path):
  log = tmp_path / "log"
  tiny.write_log(log)
  towers = tmp_path / "towers"
  flags = (*tiny.source_flags(log), "--max_steps=4", "--noevaluate")
  done = tiny.run("train", *tiny.settings("two_tower"), *flags, f"--workdir={towers}")
  assert (done.status, done.err) == (0, "")
  folder = tmp_path / "run"
  arguments = (*tiny.SETTINGS, *flags, f"--retriever={towers}", f"--workdir={folder}")
  done = tiny.run("train", *arguments)
  assert (done.status, done.err) == (0, "")

  # What is kept is the model's; the towers' run is not needed again.
  config = load_config(str(folder))
  inputs = inputs_lib.prepare_inputs(config)
  other = load_config(str(towers))
  model = registry.build(other, len(inputs.dataset.ads))
  params = request_task.load_params(other, model)
  requests = inputs.requests("test")
  batch = inputs.contexts(config, "test").batch(requests)
  scores_BN = np.array(model.apply({"params": params}, batch))
  seen_BS = np.where(batch.slot_kind_BS == 1, batch.slot_ad_BS, -1)
  for b, score_N in enumerate(scores_BN):
    score_N[seen_BS[b][seen_BS[b] >= 0]] = -np.inf
    best = np.argsort(-score_N, kind="stable")[: config.data.neighbor_slots]
    slots = batch.slot_ad_BS[b][batch.slot_kind_BS[b] == NEIGHBOR]
    assert slots.tolist() == best.tolist()
  towers.rename(tmp_path / "elsewhere")
  for binary, more in (("train", arguments[:-1]), ("evaluate", ())):
    done = tiny.run(binary, *more, f"--workdir={folder}")
    assert (done.status, done.err) == (0, ""), binary
  assert "gr4ad" in json.loads((folder / "eval" / "metrics.json").read_text())["systems"]

  # A published run has them too, and so the same lists.
  done = tiny.run("publish", f"--workdir={folder}", f"--out={tmp_path}/out", "--precision=float32")
  assert done.status == 0, done.err
  history = ["ad01", "ad05"]
  ours, theirs = (
    Recommender.load(str(place)).recommend(history, k=5) for place in (folder, tmp_path / "out")
  )
  assert [ad.ad_id for ad in ours] == [ad.ad_id for ad in theirs]
