"""Masked lists hold no ad that the user took before, and else the ads of the plain list in its order."""

import dataclasses

import numpy as np
import pytest

from gr4ad_jax.config import Config, ModelConfig, SearchConfig, load_config
from gr4ad_jax.decoding.ranker import Ranking
from gr4ad_jax.evaluation import protocols
from gr4ad_jax.training import inputs as inputs_lib
from gr4ad_jax.training import scoring, seen_ads
from tests import tiny


@pytest.mark.parametrize(
  ("search", "bias", "expected"),
  [("left", False, "left"), ("left", True, "biased"), ("masked", False, "masked"), ("masked", True, "masked")],
)
def test_treatment(search, bias, expected):
  config = Config(model=ModelConfig(history_bias=bias), search=SearchConfig(seen_ads=search))
  assert seen_ads.treatment(config) == expected


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, request):
  request.getfixturevalue("compile_cache")
  folder = tiny.write_log(tmp_path_factory.mktemp("log"), users=20)
  short = ("--max_steps=2", "--noevaluate", "--model=two_tower", "--item_loss=inbatch")
  done = tiny.run("train", *tiny.source_flags(folder), *tiny.SETTINGS, *short, f"--workdir={folder / 'run'}")
  assert (done.status, done.err) == (0, "")
  return folder / "run"


def taken_before(inputs, request):
  """From the log's events, not its lines."""
  events = inputs.dataset.events
  user = events.user[events.request == request][0]
  return set(events.ad[(events.user == user) & (events.request < request)].tolist())


@pytest.mark.parametrize("reranker", ["none", "neighbors"])
def test_masked_lists_lack_what_was_taken_and_keep_the_rest_in_order(workdir, reranker):
  config = load_config(str(workdir))
  config = dataclasses.replace(config, search=dataclasses.replace(config.search, seen_ads="masked", reranker=reranker))
  inputs = inputs_lib.prepare_inputs(config)
  requests = protocols.eval_requests(inputs.dataset, "test")
  masked = scoring.rank_run(config, inputs, requests, 5)
  left = dataclasses.replace(config, search=dataclasses.replace(config.search, seen_ads="left"))
  plain = scoring.rank_run(left, inputs, requests, len(inputs.dataset.ads))
  assert masked.ad_RK.shape == (len(requests), 5) and len(requests)
  met = 0
  for row, request in enumerate(requests.request):
    taken = taken_before(inputs, request)
    at = [n for n, ad in enumerate(plain.ad_RK[row]) if ad not in taken][:5]
    met += len(taken & set(plain.ad_RK[row, :5].tolist()))
    if reranker == "none":
      np.testing.assert_array_equal(masked.ad_RK[row, : len(at)], plain.ad_RK[row, at])
      np.testing.assert_allclose(masked.logp_RK[row, : len(at)], plain.logp_RK[row, at], rtol=1e-6)
    assert set(masked.ad_RK[row, : len(at)].tolist()).isdisjoint(taken)
    assert (masked.ad_RK[row, len(at) :] == -1).all() and (masked.score_RK[row, len(at) :] == -np.inf).all()
  assert met  # the plain lists have some


def test_a_list_that_runs_out_is_padded(workdir):
  inputs = inputs_lib.prepare_inputs(load_config(str(workdir)))
  requests = protocols.eval_requests(inputs.dataset, "test")
  ad_RK = np.array([sorted(taken_before(inputs, request))[:2] + [-1] for request in requests.request])
  score_RK = np.zeros(ad_RK.shape, np.float32)
  found = seen_ads.mask(inputs.lines, requests.request, Ranking(ad_RK, score_RK, score_RK + 1, score_RK), 2)
  assert (found.ad_RK == -1).all() and (found.score_RK == -np.inf).all() and (found.value_RK == 0).all()
