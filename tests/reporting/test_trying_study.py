"""What the place for trying costs: lists with a drawn last ad, beside those of the ranker."""

import dataclasses

import numpy as np
import pytest

from gr4ad_jax.answering import explore
from gr4ad_jax.config import ConfigError, load_config, with_knobs
from gr4ad_jax.evaluation import metrics, protocols
from gr4ad_jax.ranking import scoring, steering_study
from gr4ad_jax.reporting import trying_study
from gr4ad_jax.requests import inputs as inputs_lib


@pytest.fixture(scope="module")
def config(small_run):
  return load_config(str(small_run))


@pytest.fixture(scope="module")
def inputs(config):
  return inputs_lib.prepare_inputs(config)


def test_only_the_last_ad_is_another_one(config, inputs, monkeypatch):
  monkeypatch.setattr(trying_study, "CUT", 4)
  kept = {}
  curve = steering_study.curve

  def seen(rows, requests, facts):
    kept.update(rows)
    return curve(rows, requests, facts)

  monkeypatch.setattr(steering_study, "curve", seen)
  found = trying_study.measure(config, inputs)
  requests = protocols.eval_requests(inputs.dataset, "test", "")
  ranking = scoring.rank_run(config, inputs, requests, 4 - 1 + explore.NEXT)
  np.testing.assert_array_equal(kept["off"], ranking.ad_RK[:, :4])
  drawn_RK = kept["0"]
  np.testing.assert_array_equal(drawn_RK[:, :3], ranking.ad_RK[:, :3])
  # By hand: the first candidate whose summed chances pass the request's random number.
  uniform_R = np.random.default_rng(0).random(len(requests))
  for row, (ads, scores) in enumerate(zip(ranking.ad_RK, ranking.score_RK, strict=True)):
    some = ads[3:] >= 0
    weights = np.exp(scores[3:][some].astype(float) - scores[3])
    at, passed = 0, weights[0] / weights.sum()
    while passed < uniform_R[row]:
      at += 1
      passed += weights[at] / weights.sum()
    assert drawn_RK[row, 3] == ads[3:][some][at]
  assert (kept["8"] != drawn_RK).any()  # the spread moves some draws
  rows = found["explore_spread"]
  assert [row["setting"] for row in rows] == ["off", "0", "0.5", "1", "2", "4", "8"]
  recall = metrics.per_request(drawn_RK, requests, (10,))["recall@10"].value
  assert rows[1]["recall@10"]["mean"] == pytest.approx(recall)
  assert "| off" in steering_study.format_table(found)


def test_a_model_without_values_is_refused(config, inputs):
  other = with_knobs(config, {"lambda_ecpm": 0.0})
  other = dataclasses.replace(other, model=dataclasses.replace(other.model, model="tiger"))
  with pytest.raises(ConfigError, match="--study=trying is not allowed: --model=tiger predicts no"):
    trying_study.measure(other, inputs)
