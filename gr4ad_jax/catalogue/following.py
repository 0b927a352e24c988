"""Changes of ads through the topic `ads` of a stream: servers on one stream have the same ads.

A record is an ad as it is after a change: ad_id, the fields of `ad_records.FIELDS` that it has (a
vector as numbers), codes (its UA-SID) and `server`, who made the change. Of a removed ad it has
status `removed` and no words.
"""

import logging
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from gr4ad_jax.catalogue.ad_records import FIELDS, REMOVED
from gr4ad_jax.catalogue.catalog import AdCatalog
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.streams.stream import FellBehind, Record, Stream

TOPIC = "ads"
_PART = 1_000
_WAIT = 0.2  # seconds until the end is looked at
_AGAIN = 1.0  # seconds until a stream or disk that refused is tried again
_log = logging.getLogger(__name__)


class AdFollower:
  """Tells a stream of this server's changes, and makes those of others here.

  Args:
    stream: has the topic.
    catalog: the ads.
    server: a name of this server's folder, the same after each start.

  Attributes:
    refused: changes of others that could not be made here.
  """

  def __init__(self, stream: Stream, catalog: AdCatalog, server: str):
    self._stream = stream
    self._catalog = catalog
    self._server = server
    # Each server has a position of its own: all of them read all changes.
    self._consumer = f"catalogue {server}"
    self._offset = stream.position(TOPIC, self._consumer)
    self._foreign: set[str] = set()  # ads whose latest change here is another server's
    self.refused = 0
    self._turn = threading.Lock()
    self._closing = threading.Event()
    self._thread = threading.Thread(target=self._run, name="ads", daemon=True)

  def start(self) -> None:
    """Starts the thread; `close` ends it."""
    self._thread.start()

  def tell(self, ad_id: str) -> None:
    """Appends an ad as it is here now. Durable when this returns. Raises OSError."""
    self._stream.append(TOPIC, [self._value(ad_id)])

  def catch_up(self) -> None:
    """Makes the changes that others have told of. Raises OSError, of the stream or the disk."""
    with self._turn:
      while records := self._next():
        # Only the last record of an ad says how it is by now.
        # A dict keeps the last of equal keys, in the order in which each first came.
        for record in {record.value["ad_id"]: record for record in records}.values():
          self._make(record.value)
        self._offset = records[-1].offset
        # After the changes are made: a kill before it makes them once more, to the same end.
        self._stream.commit(TOPIC, self._consumer, self._offset)

  def close(self) -> None:
    """Ends the thread."""
    self._closing.set()
    if self._thread.ident is not None:
      self._thread.join()

  def _next(self) -> list[Record]:
    try:
      return self._stream.read(TOPIC, self._offset, _PART)
    except FellBehind as behind:
      _log.error("%s; the ads that they told of may be missing here", behind)
      # Offsets count from 1, and reading begins behind the one that is given.
      self._offset = behind.first - 1
      return self._stream.read(TOPIC, self._offset, _PART)

  def _value(self, ad_id: str) -> dict[str, Any]:
    row = self._catalog.row(ad_id)
    ad = self._catalog.ad(row)
    about = {"ad_id": ad_id, "server": self._server}
    if ad.status == REMOVED:
      return about | {"status": REMOVED}
    fields = {name: getattr(ad, name) for name in FIELDS}
    if ad.vector is None:
      del fields["vector"]
    else:
      fields["vector"] = np.frombuffer(ad.vector, "<f4").tolist()
    return about | fields | {"codes": self._catalog.codes_NT[row].tolist()}

  def _make(self, value: Mapping[str, Any]) -> None:
    """Makes a change here. One of this server's own is here already, unless another server's, which
    comes before it in the stream, was made here after it.
    """
    ad_id = value["ad_id"]
    own = value["server"] == self._server
    if own and ad_id not in self._foreign:
      return
    try:
      if value["status"] == REMOVED:
        self._catalog.delete(ad_id)
      else:
        fields = {name: value[name] for name in FIELDS if name in value}
        self._catalog.put(ad_id, fields, tuple(value["codes"]))
    except DataError as error:
      self.refused += 1
      _log.error("a change of ad %.80r by another server cannot be made here: %s", ad_id, error)
    # Both servers have said their word of the ad; the next change decides alone.
    if own:
      self._foreign.discard(ad_id)
    else:
      self._foreign.add(ad_id)

  def _run(self) -> None:
    while not self._closing.is_set():
      try:
        if self._stream.wait(TOPIC, self._offset, _WAIT):
          self.catch_up()
      except OSError as error:
        _log.error("the ads of other servers cannot be read or written, trying again: %s", error)
        self._closing.wait(_AGAIN)
      except Exception:  # a record of another form
        _log.exception("the ads of other servers are no longer followed")
        return
