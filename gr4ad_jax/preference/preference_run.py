"""Preference learning as rounds: the reference is refreshed, proposes candidates, and lists are
learned from them.

In a round of --refresh_steps the reference is the policy as the round begins. What it proposes for
the round's requests is what it would have recommended, so with --data_order=time each request is
predicted before it is learned from (prequential evaluation). The candidates lie in the workdir, so
a run that is stopped in mid-round goes on with them.
"""

import functools
import glob
import hashlib
import os
import re

import jax
import numpy as np

from gr4ad_jax import checksums
from gr4ad_jax.config import Config, SearchConfig, load_config
from gr4ad_jax.decoding.ranker import Ranker
from gr4ad_jax.evaluation import metrics, protocols
from gr4ad_jax.parallel import distributed
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.preference import collapse
from gr4ad_jax.preference.preference_task import PreferenceBatch, listed, make_preference_loss
from gr4ad_jax.requests.candidates import CandidateMaker, Candidates, RewardOf, digest
from gr4ad_jax.requests.inputs import Inputs
from gr4ad_jax.requests.request_task import RequestTask
from gr4ad_jax.training.state import TrainState
from gr4ad_jax.training.step import LossFn
from gr4ad_jax.training.task import Told
from gr4ad_jax.training.writers import Writer
from gr4ad_jax.value import rewards
from gr4ad_jax.value.reward_model import RewardModel
from gr4ad_jax.value.rewards import Rewarder

# One round back is kept, so that a run that is resumed from the checkpoint before finds its lists.
_KEPT_ROUNDS = 2
# Requests of a round that the collapse guard looks at at most, so that rounds compare.
_GUARDED = 512


class PreferenceTask(RequestTask):
  """Learns from candidates with rewards, beside VSL on what was taken.

  Args:
    config: of the run.
    inputs: data, tokenizer and features.
  """

  def __init__(self, config: Config, inputs: Inputs):
    super().__init__(config, inputs)
    self._round: Candidates | None = None
    self._folder = os.path.join(config.workdir, "candidates")

  def check_inputs(self) -> None:
    """Looks for the reward, and its model.

    Raises:
      ConfigError, DataError: see `rewards.resolve`.
      FileNotFoundError: no reward model was trained where one is needed.
    """
    rewards.resolve(self.config.preference, self.inputs.dataset.ads)
    reward_model_of(self.config, self.inputs)

  @functools.cached_property
  def _reward_model(self) -> RewardModel | None:
    return reward_model_of(self.config, self.inputs)

  @functools.cached_property
  def _maker(self) -> CandidateMaker:
    ads = self.inputs.dataset.ads
    return self.candidate_maker(
      Rewarder(self.config.preference, self.contexts, ads, self._reward_model)
    )

  @functools.cached_property
  def _guard(self) -> collapse.CollapseGuard:
    start = os.path.join(self._folder, "start.json")
    return collapse.CollapseGuard(self.config.preference, start)

  def candidate_maker(self, reward: RewardOf) -> CandidateMaker:
    """Makes the candidates that the config asks for, with rewards of `reward`."""
    config = self.config
    inputs = self.inputs
    search = SearchConfig(beams=(config.preference.candidate_beams,) * len(config.sid.codebooks))
    ranker = Ranker(self.model, inputs.index, inputs.ecpm, search)
    # Pipelines that count learn from what the run learns from, and from no other split.
    learned_L = np.isin(inputs.lines.request, self.order.examples)
    return CandidateMaker(
      config.preference, self.contexts, ranker, reward, len(inputs.dataset.ads), learned_L
    )

  def make_loss(self) -> LossFn:
    """VSL and the list objective."""
    c = self.config
    return make_preference_loss(
      self.model, c.objective, c.preference, self.inputs.ecpm, c.data.targets
    )

  def make_batch(self, requests: np.ndarray, draw: np.ndarray) -> PreferenceBatch:
    """The lists of some requests of the round."""
    del draw
    return self.lists_of(self._round, requests)

  def begin_round(self, state: TrainState, writer: Writer, told: Told) -> int:
    """Makes the candidates of the round, or takes those that a stopped run left; tells how the
    policy fares.
    """
    step = int(state.step)
    length = self.config.preference.refresh_steps
    # Rounds begin at multiples of their length, wherever the run was stopped.
    begin = step // length * length
    end = min(begin + length, self.total_steps)
    path = os.path.join(self._folder, f"round_{begin:08d}.npz")
    # All requests that the round's steps will ask for, each once.
    requests = np.unique(np.concatenate([self.order.step(s)[0] for s in range(begin, end)]))
    self._round = (
      Candidates.load(path) if step > begin and distributed.agreed(os.path.exists(path)) else None
    )
    # A round that was cut short by the run's end lacks some requests where the run goes on after
    # all.
    if self._round is None or not np.isin(requests, self._round.request_R).all():
      self._round = self._make(state, requests, told)
      # The first process writes; `distributed.agreed` above lets all of them take the same way.
      if jax.process_index() == 0:
        self._round.save(path)
        self._forget_old_rounds()
        self._tell(begin, writer)
      # What stands in the workdir is the same for all that are stopped from here on.
      distributed.barrier("round")
    return end

  def _make(self, state: TrainState, requests: np.ndarray, told: Told) -> Candidates:
    """Candidates of `requests`; each process of a job makes its share, and all get the whole."""
    p = self.config.preference
    params = mesh_lib.local_copy(state.params)
    path = None
    if p.candidates_cache:
      # Only what shapes candidates is in the name of the cache's file, so that runs with other
      # losses share it.
      about = {name: value for name, value in vars(p).items() if name in _SHAPES_CANDIDATES}
      model = self._reward_model
      rewarded_by = model.digest if model else "", _content(p.margins_path)
      shown = sorted(about.items()), self.config.data, self.config.model, rewarded_by
      known = digest(params, *shown, self.order.examples, requests)
      path = os.path.join(p.candidates_cache, f"{known}.npz")
      if distributed.agreed(os.path.exists(path)):
        return Candidates.load(path)
    # Each process makes a share of equal length; the cut takes off what fills the last one up.
    mine = requests[distributed.share(len(requests))]
    made = self._maker.make(params, mine, lambda done: told("candidates", done, len(mine)))
    made = made.map(lambda column: distributed.gather(column)[: len(requests)])
    if path and jax.process_index() == 0:
      made.save(path)
    return made

  def _forget_old_rounds(self) -> None:
    # File names have the step in eight digits, so that their order is that of the rounds.
    for old in sorted(glob.glob(os.path.join(glob.escape(self._folder), "round_*.npz")))[
      :-_KEPT_ROUNDS
    ]:
      if re.fullmatch(r"round_\d{8}\.npz", os.path.basename(old)):
        os.remove(old)
        checksums.forget(old)

  def _tell(self, step: int, writer: Writer) -> None:
    """Writes diversity, mean reward and, in order of time, how well the round was predicted."""
    made = self._round
    # Seed 0: every round looks at a sample of its own, in the same way.
    rows = np.random.default_rng(0).permutation(len(made.request_R))[:_GUARDED]
    found = collapse.diversity(
      made.policy_RK[rows], made.policy_logp_RK[rows], len(self.inputs.dataset.ads)
    )
    self._guard.check(step, found, len(rows))
    scalars = {f"round/{name}": value for name, value in found.items()}
    real_RC = made.ad_RC >= 0
    scalars["round/time"] = float(
      self.inputs.lines.request_time[made.request_R].min()
    )  # unix seconds
    scalars["round/reward"] = float(made.reward_RC[real_RC].mean()) if real_RC.any() else 0.0
    if self.config.training.data_order == "time":
      scalars |= {f"prequential/{name}": value for name, value in self._prequential(made).items()}
    writer.write(step, scalars)

  def _prequential(self, made: Candidates) -> dict[str, float]:
    """Metrics of the policy's lists on the round's requests, before any of them was learned
    from.
    """
    per_split = {}
    for split in self.config.training.fitted:
      requests = protocols.eval_requests(
        self.inputs.dataset, split, self.config.data.target_behavior
      )
      here = np.flatnonzero(np.isin(requests.request, made.request_R))
      if len(here):
        taken = requests.take(here)
        lists = made.policy_RK[made.rows_of(taken.request)]
        for name, ratio in metrics.per_request(lists, taken, (10,)).items():
          per_split.setdefault(name, []).append(ratio)
    total = {}
    for name, ratios in per_split.items():
      # Ratios of sums over all splits, not a mean of ratios.
      above, below = (
        sum(getattr(one, part).sum() for one in ratios) for part in ("numerator_R", "denominator_R")
      )
      total[name] = float(above / below)
    return total

  def lists_of(self, made: Candidates, requests: np.ndarray) -> PreferenceBatch:
    """The requests' contexts, their candidates as sequences, and which of these were taken, with
    their money.
    """
    row = made.rows_of(requests)
    ad_BC = made.ad_RC[row]
    codes_BCT = self.inputs.index.codes_NT[np.maximum(ad_BC, 0)]
    worth = made.reference_logp_RC[row], made.reward_RC[row]
    return listed(self.contexts, requests, ad_BC, codes_BCT, *worth)


_SHAPES_CANDIDATES = (
  "policy_candidates", "other_candidates", "pipelines", "candidate_beams", "reward", "reward_power",
  "value_exponent", "reward_prior", "exposure", "exposure_weight",
)  # fmt: skip


def _content(path: str) -> bytes:
  """SHA-256 of a file; empty where no file is named."""
  if not path:
    return b""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").digest()


def reward_model_of(config: Config, inputs: Inputs) -> RewardModel | None:
  """The reward model of --reward_from, else of --init_from, else of the run itself; None with
  --reward=logged.

  Raises:
    FileNotFoundError: none was trained there.
    ConfigError: it is of other UA-SIDs.
  """
  if config.preference.reward == "logged":
    return None
  source = config.preference.reward_from or config.training.init_from or config.workdir
  return RewardModel.load(config if source == config.workdir else load_config(source), inputs)
