"""LightGBM on the reward model's features: a second estimate of p(purchase) and E[value |
purchase].

Ke et al., "LightGBM: A Highly Efficient Gradient Boosting Decision Tree", NeurIPS 2017. It learns
from the pairs that the reward model learns from (`value/pair_batches`), with their weights;
<workdir>/boosted holds both forests as text.
"""

import os
from typing import Any

import numpy as np

from gr4ad_jax import checksums, files
from gr4ad_jax.config import Config
from gr4ad_jax.features.pair_features import PairBatch
from gr4ad_jax.requests.inputs import Inputs
from gr4ad_jax.value.pair_batches import PairSampler
from gr4ad_jax.value.reward_model import RewardEstimate

FOLDER = "boosted"
# More leaves on at least 200 pairs each: deep trees, but none on single events.
_FOREST = {
  "learning_rate": 0.08,
  "num_leaves": 63,
  "min_data_in_leaf": 200,
  "feature_fraction": 0.7,
  "max_bin": 127,
}
_TREES = {"purchase": 300, "value": 250}
_OBJECTIVES = {"purchase": "binary", "value": "gamma"}
# A value of 0 was bought as well, and must not be left out.
_SMALLEST = 0.05  # money: gamma needs positive values
# Requests scored at once: pairs of all ads of more of them would not fit into memory.
_ROWS = 32


def _lightgbm() -> Any:
  try:
    import lightgbm
  except ImportError as error:
    raise ImportError("lightgbm is missing: pip install 'gr4ad_jax[lightgbm]'") from error
  return lightgbm


def check() -> None:
  """Raises ImportError, naming the extra, where LightGBM is not installed."""
  _lightgbm()


def flat(pairs: PairBatch) -> np.ndarray:
  """[B, C, F] float32: features of pairs, then of users."""
  # (B, 1, F) -> (B, C, F): a view, until `concatenate` copies it.
  users = np.broadcast_to(
    pairs.user_features_BF[:, None], (*pairs.ad_row_BC.shape, pairs.user_features_BF.shape[-1])
  )
  return np.concatenate([pairs.pair_features_BCF, users], axis=-1)


class Boosted:
  """Both forests; made by `load`, which trains them where they are not there."""

  def __init__(self, purchase, value, features, clip: float):
    self._purchase = purchase
    self._value = value
    self._features = features
    self._clip = clip

  @classmethod
  def load(cls, config: Config, inputs: Inputs, split: str) -> "Boosted":
    """The forests of a run, to score requests of `split`; trained first where need be.

    Raises:
      ImportError: LightGBM is not installed.
    """
    lightgbm = _lightgbm()
    folder = os.path.join(config.workdir, FOLDER)
    # The file that is written last says that both are there.
    if not os.path.exists(os.path.join(folder, "value.txt")):
      _train(config, inputs, folder)
    paths = [os.path.join(folder, f"{name}.txt") for name in _TREES]
    # Checked before it is read: LightGBM takes a file that was cut short for a smaller forest.
    for path in paths:
      checksums.check(path)
    forests = [lightgbm.Booster(model_file=path) for path in paths]
    return cls(*forests, inputs.contexts(config, split).pairs, inputs.ecpm.clip)

  def estimate(self, requests_B: np.ndarray, ads_BC: np.ndarray) -> RewardEstimate:
    """Estimates of ads [B, C] for requests [B]; -1 is padding."""
    found = []
    for begin in range(0, len(requests_B), _ROWS):
      ads = ads_BC[begin : begin + _ROWS]
      x = flat(self._features.batch(requests_B[begin : begin + _ROWS], ads))
      rows = x.reshape(-1, x.shape[-1])
      p, value = (
        forest.predict(rows).reshape(ads.shape) for forest in (self._purchase, self._value)
      )
      found.append(
        # Sums of leaves may pass what money is clipped at in training.
        [np.where(ads >= 0, y, 0).astype(np.float32) for y in (p, np.minimum(value, self._clip))]
      )
    return RewardEstimate(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _train(config: Config, inputs: Inputs, folder: str) -> None:
  """Fits both forests on all that is learned from; `value.txt` is written last."""
  lightgbm = _lightgbm()
  sampler = PairSampler(
    inputs.contexts(config, "train"), config.reward, inputs.ecpm.clip, config.training.seed
  )
  requests = np.sort(inputs.learned(config))
  columns = []
  for begin in range(0, len(requests), 256):
    batch = sampler.batch(requests[begin : begin + 256])
    real = batch.weight_BC > 0
    # Padding has no weight, and is no row of the table.
    columns.append(
      [x[real] for x in (flat(batch.pairs), batch.bought_BC, batch.value_BC, batch.weight_BC)]
    )
  x, bought, value, weight = (np.concatenate(column) for column in zip(*columns, strict=True))
  os.makedirs(folder, exist_ok=True)
  data = {
    "purchase": (x, bought, weight),
    # E[value | purchase] learns from purchases alone.
    "value": (x[bought], np.maximum(value[bought], _SMALLEST), weight[bought]),
  }
  for name, (rows, label, weights) in data.items():
    settings = _FOREST | {
      "objective": _OBJECTIVES[name],
      "seed": config.training.seed,
      "verbose": -1,
    }
    forest = lightgbm.train(settings, lightgbm.Dataset(rows, label, weight=weights), _TREES[name])
    with files.replacing(os.path.join(folder, f"{name}.txt")) as part:
      forest.save_model(part)
