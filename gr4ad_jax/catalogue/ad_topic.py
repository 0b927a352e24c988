"""The changes of a catalogue on disk: the topic `ads` in `live/ads.sqlite`.

A record is an ad as it is after a change; its key is the ad's id. A folder of the form before
SQLite is carried over when it is first opened.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence

import numpy as np

from gr4ad_jax import checksums
from gr4ad_jax.catalogue import old_form
from gr4ad_jax.catalogue.ad_records import REMOVED, AdRecord
from gr4ad_jax.data.schema import AdTable, DataError
from gr4ad_jax.locks import InUseError, Lock
from gr4ad_jax.streams.topic import Change, Topic

NAME = "ads"  # of the topic
State = tuple[AdRecord, int, tuple[int, ...]]  # an ad, its row, its UA-SID
_FORMAT = "1"


class AdTopic:
  """The changes of one folder; it is made where it is missing.

  Args:
    directory: the folder; one process at a time may have it.
    digest: of what the changes are changes of, by `rows_digest`.

  Raises:
    DataError: another process has the folder, a file is damaged or missing, or the changes are of
      something else. Nothing is changed then.
  """

  def __init__(self, directory: str, digest: str):
    os.makedirs(directory, exist_ok=True)
    try:
      # One process at a time writes here: rows are given out by it.
      self._lock = Lock(os.path.join(directory, "lock"))
    except InUseError as error:
      raise DataError(f"{directory}: in use by another process") from error
    try:
      self._topic = _opened(directory, digest)
    except BaseException:
      self._lock.close()
      raise
    self.append = self._topic.append
    self.compact = self._topic.compact

  def states(self) -> list[State]:
    """Every ad that was changed, by row."""
    states = [AdRecord.decoded(record.payload) for record in self._topic.states()]
    # By row, so that ads that were new get their rows in the order in which they got them.
    return sorted(states, key=lambda state: state[1])

  def close(self) -> None:
    """Closes the file, and gives the folder free."""
    try:
      self._topic.close()
    finally:
      self._lock.close()


def change(ad: AdRecord, row: int, codes: Iterable[int]) -> Change:
  """The record of an ad. That of a removed one forgets what the ad was."""
  return Change(ad.ad_id, ad.encoded(row, tuple(codes)), forget=ad.status == REMOVED)


def rows_digest(ads: AdTable, codes_NT: np.ndarray, codebooks: Sequence[int]) -> str:
  """SHA-256 of what rows and UA-SIDs mean: changes by row are those of this table alone."""
  # The number of ads and the codebooks are hashed with the codes: shapes alone could agree by
  # chance.
  made = hashlib.sha256(repr((len(ads), tuple(map(int, codebooks)))).encode())
  made.update(np.ascontiguousarray(codes_NT, np.int32).tobytes())
  # In parts: the ids of ten million ads need not stand in memory twice.
  for begin in range(0, len(ads), 1 << 16):
    made.update("\0".join(map(str, ads.ad_id[begin : begin + (1 << 16)])).encode() + b"\0")
  return made.hexdigest()


def _opened(directory: str, digest: str) -> Topic:
  path = os.path.join(directory, f"{NAME}.sqlite")
  if not os.path.exists(path):
    names = old_form.files(directory)
    # What was carried over is noted with its digest, so that nothing else is ever deleted.
    old = {name: checksums.digest(os.path.join(directory, name)) for name in names}
    notes = {"format": _FORMAT, "digest": digest, "carried over": json.dumps(old)}
    # Whole or not at all: a kill in between leaves the old form, and the next opening begins anew.
    Topic.create(path, NAME, notes, _carried_over(directory, digest))
  topic = Topic(path, NAME)
  try:
    if topic.notes.get("format") != _FORMAT:
      raise DataError(f"{path}: format {topic.notes.get('format')!r}, {_FORMAT!r} is read")
    if topic.notes.get("digest") != digest:
      raise DataError(old_form.ANOTHER.format(path))
    _remove_old(directory, json.loads(topic.notes["carried over"]))
  except BaseException:
    topic.close()
    raise
  return topic


def _carried_over(directory: str, digest: str) -> list[Change]:
  """The last state of every ad of the old form, by row. A removed ad loses what it was."""
  found = {}
  for payload in old_form.payloads(directory, digest):
    ad, row, codes = AdRecord.decoded(payload)
    removed = ad.status == REMOVED
    found[row] = change(ad.removed(), row, codes) if removed else Change(ad.ad_id, payload)
  return [found[row] for row in sorted(found)]


def _remove_old(directory: str, carried_over: dict[str, str]) -> None:
  """Deletes files of the old form that were carried over, as their checksums tell."""
  for name in old_form.files(directory):
    path = os.path.join(directory, name)
    if carried_over.get(name) != checksums.digest(path):
      raise DataError(
        f"{path}: an older server wrote it after {NAME}.sqlite was made; move it away"
      )
    os.remove(path)
  for name in os.listdir(directory):
    if re.fullmatch(r"(snapshot|journal\.\d+)\.part", name):  # never finished
      os.remove(os.path.join(directory, name))
