"""A folder of lists, written part by part, by jobs that may be killed at any moment.

`part-00000.parquet`, … are whole or not there. `_plan.json` says what the lists follow from, and
`_done.json` that all parts are there. Readers of Parquet folders pass over names that begin with
`_`.
"""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from typing import Any

from gr4ad_jax import files
from gr4ad_jax.config import ConfigError
from gr4ad_jax.data.extras import optional
from gr4ad_jax.locks import Lock

_PLAN = "_plan.json"
_DONE = "_done.json"
_LOCK = "_lock"
_UNFINISHED = "_unfinished"
_MARK = b"gr4ad_plan"  # key of the plan's digest among a part's Parquet metadata
_SHOWN = 60  # characters of a setting that a message repeats


@dataclasses.dataclass(frozen=True)
class ListParts:
  """The parts of one job.

  Attributes:
    folder: where they lie.
    plan: what the lists follow from, JSON-able.
    users: of all parts together.
    size: users a part; the last one may have fewer.
  """

  folder: str
  plan: Mapping[str, Any]
  users: int
  size: int

  @property
  def count(self) -> int:
    """Number of parts."""
    # Rounded up: the last part may be shorter.
    return -(-self.users // self.size)

  @functools.cached_property
  def _digest(self) -> bytes:
    text = json.dumps(self.plan, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest().encode()

  def bounds(self, number: int) -> range:
    """Which of the users a part has."""
    return range(number * self.size, min((number + 1) * self.size, self.users))

  def begin(self) -> Lock:
    """Starts the folder, or goes on in it; what a killed job left half-written goes.

    Returns:
      A lock that keeps other jobs away until it is closed.

    Raises:
      ConfigError: the folder has lists that follow from something else, or other files.
      InUseError: another job is writing there.
    """
    path = os.path.join(self.folder, _PLAN)
    if not os.path.exists(path) and os.path.isdir(self.folder):
      # A folder with other things in it is somebody else's.
      foreign = sorted(name for name in os.listdir(self.folder) if not name.startswith("_"))
      if foreign:
        raise ConfigError(
          f"--out={self.folder} is not allowed: it holds {foreign[0]!r} and no lists; name a new "
          "folder"
        )
    os.makedirs(self.folder, exist_ok=True)
    lock = Lock(os.path.join(self.folder, _LOCK))
    try:
      shutil.rmtree(os.path.join(self.folder, _UNFINISHED), ignore_errors=True)
      if os.path.exists(path):
        self._check_plan(_read(path))
      else:
        files.write_json(path, dict(self.plan), summed=False)
    except BaseException:
      lock.close()
      raise
    return lock

  def _check_plan(self, kept: Any) -> None:
    # Through JSON once, as what was read back: tuples become lists.
    ours = json.loads(json.dumps(self.plan))
    if kept == ours:
      return
    refused = f"--out={self.folder} is not allowed: its lists"
    if not isinstance(kept, dict) or kept.keys() != ours.keys():
      raise ConfigError(f"{refused} are of another form; name a new folder")
    name = next(name for name in ours if kept[name] != ours[name])
    old, new = (str(plan[name])[:_SHOWN] for plan in (kept, ours))
    raise ConfigError(f"{refused} were made with {name}={old}, now {new}; name a new folder")

  def is_there(self, number: int) -> bool:
    """Whether a part is whole, and of this plan."""
    parquet = optional("pyarrow.parquet")
    errors = optional("pyarrow").ArrowException
    try:
      metadata = parquet.read_metadata(self._path(number)).metadata or {}
    # A file that was cut short is no Parquet file: its end is missing.
    except (FileNotFoundError, errors):
      return False
    return metadata.get(_MARK) == self._digest

  def write(self, number: int, columns: Mapping[str, Any]) -> None:
    """Writes a part: it is there when it is whole and on disk.

    Args:
      number: of the part.
      columns: arrays of equal length, by name.
    """
    arrow = optional("pyarrow")
    # The digest goes with the data, so that a part of another plan is seen.
    table = arrow.table(dict(columns)).replace_schema_metadata({_MARK: self._digest})
    # A folder of its own: what a kill leaves there is no part, whatever reads the lists meanwhile.
    made = os.path.join(self.folder, _UNFINISHED, self._name(number))
    with files.replacing(made, summed=False) as part:
      optional("pyarrow.parquet").write_table(table, part)
    # One rename within a file system: whoever lists the folder sees the whole part or none.
    os.replace(made, self._path(number))

  def finish(self) -> dict[str, int]:
    """Says that all parts are there, in `_done.json`.

    Returns:
      What it says: parts, users and lines.
    """
    parquet = optional("pyarrow.parquet")
    paths = map(self._path, range(self.count))
    lines = sum(parquet.read_metadata(path).num_rows for path in paths)
    found = {"parts": self.count, "users": self.users, "lines": lines}
    files.write_json(os.path.join(self.folder, _DONE), found, summed=False)
    shutil.rmtree(os.path.join(self.folder, _UNFINISHED), ignore_errors=True)
    return found

  def _name(self, number: int) -> str:
    return f"part-{number:05d}.parquet"

  def _path(self, number: int) -> str:
    return os.path.join(self.folder, self._name(number))


def _read(path: str) -> Any:
  """What a JSON file holds; None where it is none."""
  with open(path, encoding="utf-8") as file:
    try:
      return json.load(file)
    except ValueError:
      return None
