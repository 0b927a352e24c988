"""The pointer of a bucket's run: which objects belong to its whole state.

Objects are written first, under names that nothing else has; then a pointer that lists them, as
`state/<number>.json`. The highest number counts. So a reader sees a state that is whole, the former
or the new one, whenever the writer is killed. A pointer is written by `Store.create`, one above the
one that its writer has read: of two writers who know the same state one succeeds, and the other
finds out.
"""

import dataclasses
import json
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

from gr4ad_jax.checksums import DamagedError
from gr4ad_jax.remote.store import Store

FOLDER = "state"
_FORM = 1
_LOOKS = 50  # at a list whose newest pointer made room for a newer one in the meantime


class File(NamedTuple):
  """A file of the state: SHA-256, bytes, and the object that holds it."""

  digest: str
  size: int
  object: str


@dataclasses.dataclass(frozen=True)
class Pointer:
  """A whole state.

  Attributes:
    number: of the pointer; 0: there is no run yet.
    claim: id of the job that trained last, or trains now; see `claims`.
    owner: whose it is, in words: host, process, since when.
    files: of the run, by their names in its directory.
  """

  number: int = 0
  claim: str = ""
  owner: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  files: Mapping[str, File] = dataclasses.field(default_factory=dict)

  def to_json(self) -> dict[str, Any]:
    """As plain data."""
    return {
      "form": _FORM,
      "number": self.number,
      "claim": self.claim,
      "owner": dict(self.owner),
      "files": {name: list(self.files[name]) for name in sorted(self.files)},
    }

  @classmethod
  def from_json(cls, saved: dict[str, Any]) -> "Pointer":
    """What `to_json` made. Raises ValueError, KeyError or TypeError for anything else."""
    if saved["form"] != _FORM:
      raise ValueError(f"form {saved['form']}, this code reads {_FORM}")
    files = {name: File(*file) for name, file in saved["files"].items()}
    return cls(saved["number"], saved["claim"], saved["owner"], files)


def number(store: Store) -> int:
  """Number of the pointer that counts; 0: there is none. It is asked in one request."""
  return max(_numbers(store), default=0)


def latest(store: Store) -> Pointer:
  """The state that counts.

  Raises:
    DamagedError: the pointer cannot be read.
  """
  for _ in range(_LOOKS):
    numbers = _numbers(store)
    if not numbers:
      return Pointer()
    try:
      content = store.read(_name(numbers[-1]))
    except FileNotFoundError:
      continue
    try:
      return Pointer.from_json(json.loads(content))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise DamagedError(
        f"{store.url}/{_name(numbers[-1])} is damaged: no pointer of a run ({error})"
      ) from error
  raise OSError(f"{store.url}/{FOLDER} changes faster than it can be read")


def following(before: Pointer, **changes: Any) -> Pointer:
  """The pointer after `before`, with other values of some attributes; not written yet."""
  return dataclasses.replace(before, number=before.number + 1, **changes)


def write(store: Store, after: Pointer) -> bool:
  """Writes a pointer of `following`; False: another writer came first, and it does not count."""
  # The id tells this writer's pointer from another's that says the same.
  content = json.dumps(after.to_json() | {"id": uuid.uuid4().hex}).encode()
  if not store.create(_name(after.number), content):
    return False
  # Older pointers are deleted, so a number may be free again that others went past long ago.
  return _numbers(store)[-1:] == [after.number]


def forget_older(store: Store, pointer: Pointer) -> None:
  """Deletes the pointers before this one."""
  store.delete([_name(number) for number in _numbers(store) if number < pointer.number])


def forget(store: Store, pointer: Pointer) -> None:
  """Deletes a pointer: of a job that wrote nothing."""
  store.delete([_name(pointer.number)])


def _name(number: int) -> str:
  return f"{FOLDER}/{number:012d}.json"


def _numbers(store: Store) -> list[int]:
  """Numbers of the pointers that are there, ascending."""
  found = (name.removeprefix(f"{FOLDER}/") for name in store.entries(FOLDER))
  stems = (name.removesuffix(".json") for name in found if name.endswith(".json"))
  return sorted(int(stem) for stem in stems if stem.isdecimal())
