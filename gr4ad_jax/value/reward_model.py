"""A trained reward model: calibrated p(purchase) and E[value | purchase] of any ads for any
request.
"""

import dataclasses
import os
from typing import Any, NamedTuple

import jax
import numpy as np

from gr4ad_jax import files
from gr4ad_jax.config import Config, ConfigError
from gr4ad_jax.evaluation.calibration import Calibration
from gr4ad_jax.features.pair_features import PairFeatures
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.requests.candidates import digest
from gr4ad_jax.requests.inputs import Inputs
from gr4ad_jax.training import state as state_lib
from gr4ad_jax.training.checkpoint import Checkpointer
from gr4ad_jax.value import reward_run

_ROWS = 64  # requests scored at once
_STEP = 32  # ads a request are padded to a multiple of this, so that few shapes are compiled
_PAIRS = 1 << 16  # pairs scored at once, where a request has many ads


class RewardEstimate(NamedTuple):
  """Of pairs [B, C], float32, 0 in padding.

  Attributes:
    purchase_BC: p(purchase), calibrated.
    value_BC: E[value | purchase], money, the value clipped as the training's.
  """

  purchase_BC: np.ndarray
  value_BC: np.ndarray


class RewardModel:
  """Scores pairs; made by `load`.

  Attributes:
    features: where it looks features of pairs up.
    digest: SHA-256 of parameters, scales and calibration: equal ones estimate alike.
  """

  def __init__(
    self,
    model,
    params: Any,
    features: PairFeatures,
    scale: "reward_run.Scale",
    calibration: Calibration,
  ):
    # All that estimates depend on: a cache of candidates knows by it whether they are still good.
    self.digest = digest(params, scale.pair, scale.user, scale.value, scale.clip, calibration)
    self._params = params
    self.features = features
    self._scale = scale
    self._calibration = calibration
    self._apply = jax.jit(lambda params, pairs: model.apply({"params": params}, pairs, scale.edges))

  @classmethod
  def load(cls, config: Config, inputs: Inputs, split: str = "train") -> "RewardModel":
    """Reads the reward model of a run.

    Args:
      config: of the run.
      inputs: data, and the same UA-SIDs.
      split: whose requests are to be scored; 'train' means all that is learned from.

    Raises:
      FileNotFoundError: it was not trained, or not to the end.
      ConfigError: it is of other UA-SIDs.
    """
    folder = reward_run.folder_of(config)
    if not reward_run.is_finished(config):
      raise FileNotFoundError(
        f"{folder} holds no reward model: python -m experiments.reward "
        f"--workdir={config.workdir} trains it"
      )
    scale = reward_run.Scale.load(folder)
    if scale.codes != reward_run.read_digest(config, inputs):
      raise ConfigError(
        f"{folder} is not allowed: its reward model was trained with other UA-SIDs or features"
      )
    features = inputs.contexts(config, split).pairs
    model = reward_run.build_ranker(config, inputs)
    # One pair gives the shapes of the parameters.
    some = features.batch(np.zeros(1, np.int64), np.zeros((1, 1), np.int64))
    mesh = mesh_lib.local_mesh()
    target = state_lib.abstract_params(
      lambda: model.init(jax.random.key(0), some, scale.edges)["params"], mesh
    )
    with Checkpointer(reward_run.checkpoints_of(config), read_only=True) as checkpointer:
      params = checkpointer.restore_params(target, "last")
    names = [field.name for field in dataclasses.fields(Calibration)]
    made = Calibration(*files.load_fields(os.path.join(folder, reward_run.CALIBRATION), *names))
    return cls(model, params, features, scale, made)

  def estimate(self, requests_B: np.ndarray, ads_BC: np.ndarray) -> RewardEstimate:
    """Estimates of ads [B, C] for requests [B]; -1 is padding."""
    requests_B = np.asarray(requests_B)
    ads_BC = np.asarray(ads_BC)
    B, C = ads_BC.shape
    # Rounded up to a multiple, so that few shapes are compiled.
    width = -(-max(C, 1) // _STEP) * _STEP
    # Fewer requests at once where each has many ads: the number of pairs bounds the memory.
    rows = max(1, min(_ROWS, _PAIRS // width))
    # Rows are padded as well, and the filling is cut off after `concatenate`.
    ads = np.full((-(-B // rows) * rows, width), -1, np.int64)
    ads[:B, :C] = ads_BC
    # Filled up with requests of the same batch: any will do, their ads are padding.
    requests = np.resize(requests_B, len(ads)) if B else np.zeros(0, np.int64)
    found = []
    for begin in range(0, B, rows):
      part = slice(begin, begin + rows)
      pairs = self.features.batch(requests[part], ads[part])
      # Both arrays of a part come to the host at once.
      logit, log_value = jax.device_get(self._apply(self._params, pairs))
      # Values were learned in units of their mean; the factor is what calibration found, and the
      # clip that of training.
      value = np.minimum(
        np.exp(log_value) * self._scale.value * self._calibration.value_factor, self._scale.clip
      )
      found.append((self._calibration.probability(logit), value.astype(np.float32)))
    if not found:
      return RewardEstimate(*(np.zeros((0, C), np.float32) for _ in range(2)))
    columns = (np.concatenate(column)[:B, :C] for column in zip(*found, strict=True))
    return RewardEstimate(*(np.where(ads_BC >= 0, column, 0) for column in columns))
