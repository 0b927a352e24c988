"""Lists for all users of a run, or for many: what `recommend` gives each, as Parquet.

The users are cut into parts. A part's lists depend on nothing but the plan, so parts may be made in
any order, by any number of processes, and again after a kill.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence

import jax
import numpy as np

from gr4ad_jax.answering.contexts import UserHistories
from gr4ad_jax.answering.recommender import Recommender
from gr4ad_jax.builders.prepare import load_dataset
from gr4ad_jax.catalogue.choice import Choice
from gr4ad_jax.data.schema import DataError, EventLog
from gr4ad_jax.decoding.ranker import Ranking
from gr4ad_jax.delivery.list_parts import ListParts
from gr4ad_jax.models import gr4ad
from gr4ad_jax.parallel import distributed
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.reading import column_files
from gr4ad_jax.requests import inputs

# Requests that a device searches at once. A CPU gains nothing by more than the first; an
# accelerator begins with the second, and goes down to the third where memory ends.
_CPU_BATCH = 64
_MOST = 1024
_LEAST = 8

Told = Callable[[str, int, int], None]  # what is done, how much of it, of how much


@dataclasses.dataclass(frozen=True)
class Wanted:
  """What lists are asked for.

  Attributes:
    k: ads a list.
    choice: which ads are wanted, of all users alike.
    part_users: users a file; a job that was killed makes at most so many users' lists again.
  """

  k: int = 10
  choice: Choice = dataclasses.field(default_factory=Choice)
  part_users: int = 1024


class BatchLists:
  """Makes lists of many users. Make one with `open`.

  Args:
    recommender: the run.
    events: its log.
    users: ids of users of the log, in the order of the lists.
    wanted: which lists.
  """

  def __init__(
    self, recommender: Recommender, events: EventLog, users: Sequence[str], wanted: Wanted
  ):
    mesh = mesh_lib.make_mesh(devices=jax.local_devices())
    self._devices = mesh_lib.batch_shards(mesh)
    self._digest = recommender.digest()
    # Taken before the parameters are spread over devices.
    self._recommender = recommender.over(mesh) if self._devices > 1 else recommender
    self._log = inputs.log_digest(events)
    self._histories = UserHistories(events)
    number_of = {str(user): number for number, user in enumerate(events.user_id)}
    # Users are named by id, and the log knows them by number.
    self._numbers = np.array([number_of[user] for user in users])
    self._users = list(users)
    self._wanted = wanted
    self._batch = _CPU_BATCH if jax.default_backend() == "cpu" else _MOST

  @classmethod
  def open(cls, recommender: Recommender, wanted: Wanted, users_path: str = "") -> "BatchLists":
    """Reads the run's log, and the users that a file names.

    Args:
      recommender: the run.
      wanted: which lists.
      users_path: a .parquet or .csv file with a column `user_id`; empty: all users of the log.

    Raises:
      ConfigError: the log is another than that of the run.
      DataError: a user that the log lacks, or who is named twice; an ad, account or category that
        there is none of.
    """
    dataset = load_dataset(recommender.config.data)
    inputs.check_same_log(recommender.config, dataset)
    events = dataset.events
    known = list(map(str, events.user_id))
    users = _named_users(users_path, set(known)) if users_path else known
    lists = cls(recommender, events, users, wanted)
    # A wish that nothing fulfils is told before any work.
    lists._ranked(lists._numbers[:1])
    return lists

  def plan(self) -> dict:
    """What the lists follow from, JSON-able: of an equal plan they are equal."""
    config = self._recommender.config
    # Every knob of the search can change a list, so all are in the plan.
    search = dataclasses.asdict(config.search)
    return {
      "checkpoint": self._recommender.step,
      "k": self._wanted.k,
      **dataclasses.asdict(self._wanted.choice),
      **{f"search.{name}": value for name, value in search.items()},
      "compute_dtype": gr4ad.compute_dtype(config.model).name,
      "part_users": self._wanted.part_users,
      "number_of_users": len(self._users),
      "users": hashlib.sha256(json.dumps(self._users).encode()).hexdigest(),
      "log": self._log,
      "model": self._digest,
    }

  def write(self, folder: str, told: Told = lambda *_: None) -> dict[str, int]:
    """Writes what is missing of the lists into a folder. All processes of a job must call it.

    Each process makes every P-th part. A line has user_id, rank (from 1), ad_id, log_p, score, ecpm
    (money) and checkpoint. Users whose lists run out have fewer lines.

    Args:
      folder: new, or of a job with an equal plan, which is gone on with.
      told: hears of the users that this process has done, of its own.

    Returns:
      Parts, users and lines.

    Raises:
      ConfigError: the folder has other lists, or other files.
      InUseError: another job is writing there.
    """
    parts = ListParts(folder, self.plan(), len(self._users), self._wanted.part_users)
    # One process owns the folder; the others write parts into it.
    lock = parts.begin() if jax.process_index() == 0 else None
    distributed.barrier("lists begin")
    try:
      self._write_missing(parts, told)
      distributed.barrier("lists end")
      done = parts.finish() if lock else {}
    finally:
      if lock:
        lock.close()
    return done

  def _write_missing(self, parts: ListParts, told: Told) -> None:
    # Every P-th part, counted from this process' own number.
    own = range(jax.process_index(), parts.count, jax.process_count())
    missing = [number for number in own if not parts.is_there(number)]
    total = sum(len(parts.bounds(number)) for number in own)
    done = total - sum(len(parts.bounds(number)) for number in missing)
    told("users", done, total)
    for number in missing:
      users = np.array(parts.bounds(number))
      parts.write(number, self._columns(users, self._ranked(self._numbers[users])))
      done += len(users)
      told("users", done, total)

  def _ranked(self, numbers: np.ndarray) -> Ranking:
    """The lists of users by their numbers in the log; in smaller batches where memory ends."""
    log = self._histories.take(numbers)
    now_U = self._recommender.default_moments(log)
    wanted = self._wanted
    while True:
      try:
        # A batch of so many for each device.
        size = self._batch * self._devices
        return self._recommender.rank_log(log, now_U, wanted.k, wanted.choice, size)
      except jax.errors.JaxRuntimeError as error:
        # JAX tells it in words alone.
        if "RESOURCE_EXHAUSTED" not in str(error) or self._batch <= _LEAST:
          raise
        self._batch //= 2

  def _columns(self, users: np.ndarray, ranking: Ranking) -> dict[str, np.ndarray]:
    """The lines of some users, by column."""
    # Row by row, so that lines stand by user, then by rank.
    user, place = np.nonzero(ranking.ad_RK >= 0)
    ids = np.array(self._users, object)
    return {
      "user_id": ids[users[user]],
      "rank": (place + 1).astype(np.int32),
      "ad_id": self._recommender.ads.ad_id[ranking.ad_RK[user, place]],
      "log_p": ranking.logp_RK[user, place].astype(np.float32),
      "score": ranking.score_RK[user, place].astype(np.float32),
      "ecpm": ranking.value_RK[user, place].astype(np.float32),
      "checkpoint": np.full(len(user), self._recommender.step, np.int32),
    }


def _named_users(path: str, known: set[str]) -> list[str]:
  """The users of a file, in its order. Raises DataError for one who is unknown, or there twice."""
  column_files.check_file("users", path)
  cells = column_files.read_file(path, ("user_id",))["user_id"]
  # Each distinct id once, and for every row the number of its own.
  user_E, names = cells.ids()
  seen: set[int] = set()
  # Row by row, so that the message names the line of the file.
  for row, user in enumerate(user_E.tolist()):
    if str(names[user]) not in known:
      raise cells.bad(row, str(names[user]), "is no user of the run's event log")
    if user in seen:
      raise cells.bad(row, str(names[user]), "stands there twice")
    seen.add(user)
  if not seen:
    raise DataError(f"{path}: no users")
  return [str(names[user]) for user in user_E]
