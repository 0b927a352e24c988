"""The reward system: lists of candidates for requests that were answered, and what each is worth.

It samples answers from the topic `impressions`, searches wider than the server did, adds what other
pipelines propose and what was taken, rewards all by the reward model, and writes the lists to the
topic `lists`. How far the reward model can be trusted shows in what followed the answers.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gr4ad_jax.config import Config, SearchConfig
from gr4ad_jax.decoding.ranker import Ranker
from gr4ad_jax.live.grown import GrownLog, all_known
from gr4ad_jax.preference.waiting_lists import LISTS
from gr4ad_jax.requests import request_task
from gr4ad_jax.requests.candidates import NO_REFERENCE, CandidateMaker
from gr4ad_jax.requests.inputs import Inputs
from gr4ad_jax.streams.stream import Stream, read_kept
from gr4ad_jax.value.reward_model import RewardModel
from gr4ad_jax.value.rewards import Rewarder

IMPRESSIONS = "impressions"
CONSUMER = "proposer"
FOLDER = os.path.join("live", "proposer")  # of a workdir
_log_of_zero = 1e-12


@dataclasses.dataclass(frozen=True)
class Terms:
  """How it works.

  Attributes:
    sample: answers that are looked at of each part of the topic that is read at once.
    part: answers of such a part.
    hours: within which a visit counts as following an answer.
    seed: of the sample.
  """

  sample: int = 64
  part: int = 512
  hours: float = 1.0
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Cycle:
  """What one part of the topic gave.

  Attributes:
    offset: up to which it was read.
    answers: in the part.
    lists: that were written.
    unfollowed: answers of the sample that no visit followed.
    calibration: of the reward model on the ads that were shown: see `calibration`.
  """

  offset: int
  answers: int
  lists: int
  unfollowed: int
  calibration: dict[str, float]


class Proposer:
  """Reads a stream on from where it was, part by part.

  Args:
    config: of a trained run with a reward model.
    inputs: of the run.
    stream: has the topics.
    terms: how it works.
  """

  def __init__(self, config: Config, inputs: Inputs, stream: Stream, terms: Terms):
    self.config = all_known(config)
    self._stream = stream
    self._terms = terms
    self.log = GrownLog(inputs, 60 * config.data.session_gap_minutes)
    # As wide at every level, whatever the run itself searches with.
    width = config.preference.candidate_beams
    search = SearchConfig(beams=(width,) * len(config.sid.codebooks))
    task = request_task.make(config, inputs)
    self.model = task.model
    self._ranker = Ranker(task.model, inputs.index, inputs.ecpm, search)

  @property
  def lag(self) -> int:
    """Answers that were not looked at."""
    return self._stream.end(IMPRESSIONS) - self._stream.position(IMPRESSIONS, CONSUMER)

  def read_log(self) -> None:
    """Reads the events that have come. Raises OSError as the stream."""
    self.log.read(self._stream)

  def next_part(self) -> tuple[list[Mapping[str, Any]], int] | None:
    """The next part of the topic, sampled, and the offset that it ends at; None where there is
    none that is over.

    A part is over when what its answers are followed by is known. The same part gives the same
    sample, whenever it is read.
    """
    self.read_log()
    terms = self._terms
    after = self._stream.position(IMPRESSIONS, CONSUMER)
    records, _ = read_kept(self._stream, IMPRESSIONS, after, terms.part)
    # What followed an answer is complete after so many hours only.
    until = self.log.end - 3600 * terms.hours
    over = [record for record in records if record.value["moment"] <= until]
    # A part that begins at the same offset has the same length: else a kill would change samples.
    if len(over) < terms.part or not over:
      return None
    # The sample follows from the part alone: a part that is read again gives the same one.
    rng = np.random.default_rng([terms.seed, records[0].offset])
    # Who asked without a name has no visit that could follow.
    known = [record.value for record in records if record.value["user"] is not None]
    chosen = np.sort(rng.permutation(len(known))[: terms.sample])
    return [known[at] for at in chosen], records[-1].offset

  def propose(self, params: Any, reward_config: Config) -> Cycle | None:
    """Lists for the next part of the topic; None where there is none.

    They are durable, and the position is, when this returns. After a kill in between the same lists
    are written again, and count once.

    Args:
      params: of the policy in use.
      reward_config: of the run in whose folder the reward model lies.

    Raises:
      OSError: the stream refuses.
      FileNotFoundError: there is no reward model.
    """
    found = self.next_part()
    if found is None:
      return None
    answers, offset = found
    inputs = self.log.inputs()
    request_A = _followed(inputs, answers, 3600 * self._terms.hours)
    followed = [answer for answer, at in zip(answers, request_A, strict=True) if at >= 0]
    # Answers that nothing followed have no list, as nothing is known of what was taken.
    requests = request_A[request_A >= 0]
    contexts = inputs.contexts(self.config, "train")
    reward_model = RewardModel.load(all_known(reward_config), inputs)
    measured: dict[str, float] = {}
    written = 0
    if len(requests):
      rewarder = Rewarder(self.config.preference, contexts, inputs.dataset.ads, reward_model)
      learned_L = np.ones(len(inputs.lines.request), bool)
      maker = CandidateMaker(
        self.config.preference, contexts, self._ranker, rewarder, len(inputs.dataset.ads), learned_L
      )
      made = maker.make(params, requests)
      values = [_value(inputs, answer, made, row) for row, answer in enumerate(followed)]
      # Ids of answers are keys: after a kill nothing stands there twice.
      self._stream.append(LISTS, values, [value["request"] for value in values])
      written = len(values)
      measured = calibration(inputs, reward_model, requests, followed)
    # After the lists, so that no answer is passed over.
    self._stream.commit(IMPRESSIONS, CONSUMER, offset)
    return Cycle(offset, self._terms.part, written, len(answers) - written, measured)


def _followed(inputs: Inputs, answers: Sequence[Mapping[str, Any]], seconds: float) -> np.ndarray:
  """The visit that followed each answer: the user's first that began at its moment or within so
  many seconds; -1: none did. [A] int64.
  """
  lines = inputs.lines
  user_id = inputs.dataset.events.user_id
  number = {str(user): at for at, user in enumerate(user_id)}
  # Requests stand in order of user, and of a user in order of time.
  first_U = np.searchsorted(lines.request_user, np.arange(len(user_id) + 1))
  found = np.full(len(answers), -1, np.int64)
  for at, answer in enumerate(answers):
    user = number.get(answer["user"])
    if user is None:
      continue
    # The user's own requests, of which the first at or after the answer is looked for.
    begin = first_U[user]
    end = first_U[user + 1]
    row = begin + int(np.searchsorted(lines.request_time[begin:end], answer["moment"]))
    if row < end and lines.request_time[row] < answer["moment"] + seconds:
      found[at] = row
  return found


def _value(inputs: Inputs, answer: Mapping[str, Any], made: Any, row: int) -> dict[str, Any]:
  """A list as a record: its candidates, dearest first."""
  ad_C = made.ad_RC[row]
  outcomes = inputs.lines.outcomes
  # (1, C) of one request, and its row back.
  taken_C = outcomes.of(made.request_R[row : row + 1], ad_C[None])[0] >= 0
  order = np.argsort(-made.reward_RC[row], kind="stable")
  entries = []
  for at in order[ad_C[order] >= 0].tolist():
    logp = float(made.reference_logp_RC[row, at])
    entries.append({
      "ad": str(inputs.dataset.ads.ad_id[ad_C[at]]),
      "codes": inputs.index.codes_NT[ad_C[at]].tolist(),
      "reward": float(made.reward_RC[row, at]),
      "log_p": None if logp <= NO_REFERENCE else logp,
      "taken": bool(taken_C[at]),
    })  # fmt: skip
  about = {name: answer[name] for name in ("request", "user", "moment", "arm", "checkpoint")}
  # The visit that followed, so that whoever learns from the list finds it.
  about["began"] = int(inputs.lines.request_time[made.request_R[row]])
  return about | {"list": entries}


def calibration(
  inputs: Inputs, model: RewardModel, requests: np.ndarray, answers: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
  """What the reward model said of the ads that were shown, beside what followed.

  Args:
    inputs: with the grown log.
    model: the reward model.
    requests: [R] the visits that followed.
    answers: the answers, in the same order.

  Returns:
    pairs; expected and taken, numbers of purchases; ratio, the one over the other; log_loss, nats a
    pair; expected_value and value, money. Empty where nothing of it is known.
  """
  row = inputs.dataset.ads.row_of
  shown = [[row.get(entry["ad"], -1) for entry in answer["list"]] for answer in answers]
  width = max(map(len, shown), default=0)
  if not width:
    return {}
  # Lists of different lengths are padded to one width.
  ad_RK = np.array([ads + [-1] * (width - len(ads)) for ads in shown], np.int64)
  found = model.estimate(requests, ad_RK)
  real = ad_RK >= 0
  # Rows of the outcomes, -1 where the ad was not taken.
  own_RK = inputs.lines.outcomes.of(requests, ad_RK)
  taken = (own_RK >= 0)[real]
  value = np.where(own_RK >= 0, inputs.lines.outcomes.value[np.maximum(own_RK, 0)], 0.0)[real]
  # Probabilities of 0 and 1 would make the log infinite.
  p = np.clip(found.purchase_BC[real].astype(np.float64), _log_of_zero, 1 - _log_of_zero)
  expected = float(p.sum())
  made = {
    "pairs": float(len(p)),
    "expected": expected,
    "taken": float(taken.sum()),
    "log_loss": float(-np.where(taken, np.log(p), np.log1p(-p)).mean()) if len(p) else 0.0,
    "expected_value": float((p * found.value_BC[real]).sum()),
    "value": float(value.sum()),
  }
  return made | ({"ratio": expected / made["taken"]} if made["taken"] else {})
