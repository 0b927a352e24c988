"""What parameters start from."""

import jax
import numpy as np
import pytest
from absl import flags

from experiments import flags as flags_lib
from gr4ad_jax.features.batches import PADDING
from gr4ad_jax.models import context, piecewise
from gr4ad_jax.parallel import row_tables
from gr4ad_jax.requests import inputs as inputs_lib
from gr4ad_jax.requests import request_task
from gr4ad_jax.swing import cooccurrence
from gr4ad_jax.training.trainer import Trainer
from tests import tiny


@pytest.fixture(scope="module")
def log(tmp_path_factory):
  return tiny.write_log(tmp_path_factory.mktemp("log"))


def trainer_of(log, model, *more):
  values = flags.FlagValues()
  flags_lib.define_flags(values)
  values(["train", *tiny.source_flags(log), *tiny.settings(model), f"--workdir={log}/run", *more])
  config = flags_lib.config_from_flags(values)
  return Trainer(request_task.make(config, inputs_lib.prepare_inputs(config)))


def made(log, model, *more):
  trainer = trainer_of(log, model, *more)
  return trainer.task.inputs, trainer.state.params


@pytest.mark.long
def test_vectors_of_ads_start_from_co_occurrence_alone_or_with_content(log):
  inputs, params = made(log, "sasrec", "--item_start=ppmi")
  lines = inputs.lines
  train_L = lines.request_split[lines.request] == 0
  ads = len(inputs.dataset.ads)
  taken = cooccurrence.ppmi_vectors(
    lines.request_user[lines.request][train_L], lines.ad[train_L], ads, 16
  )
  np.testing.assert_allclose(params[row_tables.NAME][:ads], taken, atol=1e-6)
  learned = (
    "--tower_steps=3",
    "--cooccurrence_width=8",
  )  # by the tokenizer: its vectors are more than the content
  inputs, params = made(log, "sasrec", "--item_start=ppmi+content", *learned)
  both = cooccurrence.joined(taken, inputs.tokenizer.embed(inputs.dataset.ads), 16)
  np.testing.assert_allclose(params[row_tables.NAME][:ads], both, atol=1e-5)


@pytest.mark.long
def test_codes_start_with_the_mean_of_their_ads(log):
  _, random = made(log, "gr4ad_items")
  inputs, params = made(log, "gr4ad_items", "--item_start=ppmi")
  index, ads = inputs.index, len(inputs.dataset.ads)
  means = cooccurrence.code_means(
    np.asarray(params[row_tables.NAME])[:ads], index.codes_NT, index.codebooks
  )
  for level, mean_VD in enumerate(means):
    moved = params[f"head_{level}"]["kernel"] - random[f"head_{level}"]["kernel"]
    np.testing.assert_allclose(moved, mean_VD.T, atol=1e-5)
    moved = params[f"codes_{level}"] - random[f"codes_{level}"]
    np.testing.assert_allclose(moved, 4 * mean_VD, atol=1e-5)


@pytest.mark.long
def test_edges_of_features_are_fitted_and_then_stay(log):
  trainer = trainer_of(log, "gr4ad", "--feature_bins=4", "--weight_decay=0.5")
  batch = trainer.task.contexts.batch(np.sort(trainer.task.order.examples))
  seen = batch.slot_features_BSF[batch.slot_kind_BS != PADDING], batch.user_features_BF
  expected = [piecewise.feature_edges(x, 4).ravel() for x in seen]
  before = jax.device_get(trainer.state.params)
  state, _ = trainer.step(trainer.state, trainer.make_batch(0))
  for params in (before, jax.device_get(state.params)):
    for name, edges in zip(context.EDGES, expected, strict=True):
      np.testing.assert_allclose(params["processor"][name], edges, rtol=1e-6)
  assert (
    before["processor"]["slots_in"]["kernel"] != state.params["processor"]["slots_in"]["kernel"]
  ).any()


@pytest.mark.long
@pytest.mark.parametrize("flag", ["--feature_bins=0", "--nobehavior_features"])
def test_without_pieces_or_features_no_edges_are_fitted(log, flag):
  params = made(log, "gr4ad", flag)[1]["processor"]
  assert not any(np.asarray(params[name]).any() for name in context.EDGES if name in params)
