"""Which events a run was trained on, as hashes: a log that grew is told apart from another log."""

import hashlib
import os

import numpy as np

from gr4ad_jax import files
from gr4ad_jax.data.schema import EventLog
from gr4ad_jax.features.targets import splitmix64

_FILE = "events.npz"


def hashes(events: EventLog) -> np.ndarray:
  """[E] uint64, ascending: a hash of each event's user id, ad row, time, depth, value, quantity.

  Numbers of users and visits are not in it: they change when a log grows.
  """
  # Hashes of ids, since numbers of users change when a log grows.
  of_user = (hashlib.blake2b(str(user).encode(), digest_size=8).digest() for user in events.user_id)
  user_U = np.frombuffer(b"".join(of_user), np.uint64)
  found = user_U[events.user]
  columns = (
    events.ad.astype(np.uint64),
    events.time.astype(np.uint64),
    events.behavior.astype(np.uint64),
    # The bits of the float, so that equal numbers have equal hashes and near ones do not.
    events.value.astype(np.float32).view(np.uint32).astype(np.uint64),
    events.quantity.astype(np.float32).view(np.uint32).astype(np.uint64),
  )
  for column in columns:
    # One after another, so that the same number in two columns does not cancel.
    found = splitmix64(found + splitmix64(column + np.uint64(0x9E3779B97F4A7C15)))
  return np.sort(found)


def save(directory: str, events: EventLog) -> None:
  """Writes `events.npz`: 8 bytes an event."""
  files.save_arrays(os.path.join(directory, _FILE), hash=hashes(events))


def all_in(directory: str, events: EventLog) -> bool:
  """Whether a log has all events that were saved, each at least as often; False where none were.

  Raises:
    DamagedError: the file is another than was written.
  """
  path = os.path.join(directory, _FILE)
  # A run of before hashes were kept: nothing can be said.
  if not os.path.exists(path):
    return False
  (kept,) = files.load_arrays(path, "hash")
  now = hashes(events)
  # The same event may stand in a log several times.
  once, often = np.unique(kept, return_counts=True)
  begin = np.searchsorted(now, once, side="left")
  end = np.searchsorted(now, once, side="right")
  return bool((end - begin >= often).all())
