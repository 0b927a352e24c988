"""The one way in which studies train and rank: configs in, rankings out; what is there already is
not made again.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from gr4ad_jax.config import Config, is_trained
from gr4ad_jax.evaluation import metrics, protocols
from gr4ad_jax.ranking import list_cache, reranking, scoring
from gr4ad_jax.requests import inputs as inputs_lib
from gr4ad_jax.requests import request_task
from gr4ad_jax.requests.inputs import Inputs
from gr4ad_jax.requests.request_task import RequestTask
from gr4ad_jax.runs import run, workdir
from gr4ad_jax.training.loop import FitResult

Train = Callable[[RequestTask], FitResult]


def _nothing(*_) -> None:
  pass


class Runner:
  """Trains and ranks runs of the request models.

  Args:
    train: how a task is trained; the binaries' own show progress.
    opened: hears of the inputs of a run, once they are read; it may refuse them.
  """

  def __init__(self, train: Train = run.train, opened: Callable[[Inputs], None] = _nothing):
    self._train = train
    self._opened = opened
    self._inputs: dict[str, Inputs] = {}

  def inputs(self, config: Config) -> Inputs:
    """The inputs of a run. Those of the last are kept: a run and what starts from it share them."""
    # What starts from a run shares that run's inputs.
    key = config.training.init_from or config.workdir
    if key not in self._inputs:
      # One at a time: a second data set beside it would take as much memory again.
      self._inputs = {key: inputs_lib.prepare_inputs(config)}
      self._opened(self._inputs[key])
    return self._inputs[key]

  def train(self, config: Config) -> None:
    """Trains a run to its end.

    Raises:
      Stopped: asked to stop; the same call goes on.
    """
    inputs = self.inputs(config)
    # Another search of the same run may have written its config.
    if is_trained(config.workdir):
      workdir.check_workdir(config)
    else:
      workdir.save_config(config)
      inputs_lib.save_inputs(config, inputs)
    list_cache.go_on(self._train(request_task.make(config, inputs)), config.workdir)

  def ranking(
    self, config: Config, split: str, folder: str = "", searched: str = "",
    before: Callable[[], None] = _nothing, name: str = "",
  ) -> np.ndarray:  # fmt: skip
    """Top ads of each request of a split by a run, trained first where need be: [R, K].

    Args:
      config: of the run.
      split: whose requests.
      folder: where the ranking is kept; empty: in the run's own.
      searched: workdir of a trained run that is searched in its stead; empty: the run is trained.
      before: called first where the ranking has to be made.
      name: that it is kept under; empty: the split's.
    """

    def make() -> np.ndarray:
      # Only called where no ranking is kept.
      before()
      if not searched:
        self.train(config)
      at = dataclasses.replace(config, workdir=searched) if searched else config
      inputs = self.inputs(config)
      reranking.prepare(at, inputs)
      requests = protocols.eval_requests(inputs.dataset, split, config.data.target_behavior)
      k = max(protocols.protocol_of(inputs.dataset.name).ks)
      return scoring.rank_run(at, inputs, requests, k).ad_RK

    return list_cache.kept(folder or config.workdir, name or split, scoring.shaping(config), make)

  def scores(
    self, config: Config, split: str, ad_RK: np.ndarray, ks: Sequence[int] = ()
  ) -> dict[str, float]:
    """Metrics of a ranking at some cuts; those of the protocol where none are given."""
    dataset = self.inputs(config).dataset
    requests = protocols.eval_requests(dataset, split, config.data.target_behavior)
    cuts = tuple(ks) or protocols.protocol_of(dataset.name).ks
    found = metrics.per_request(ad_RK, requests, cuts)
    return {name: ratio.value for name, ratio in found.items()}
