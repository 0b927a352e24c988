"""What a connection may cost before the app sees a request: time, headers, pipelining, number.

uvicorn speaks HTTP; it bounds none of these. The protocol here adds the limits around it, by what
asyncio and the parser call on every protocol. A client that breaks one is told so where it can be
told, and its connection is closed. Needs the `serve` extra.
"""

import collections
import dataclasses
import functools
import logging
import os
import resource
import time
from collections.abc import Callable

from gr4ad_jax.serving.guard import json_bytes

try:
  from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError as error:
  raise ImportError("uvicorn or httptools is missing: pip install 'gr4ad_jax[serve]'") from error

_log = logging.getLogger(__name__)
_PIECE = 2048  # bytes that the parser is given at once, so that limits are looked at in between
_CHUNKED = 8  # most bytes beside each byte of a body in chunks
_PIPELINED = 16  # requests of one connection that may wait for their turn
_QUIET = 10.0  # seconds between two log lines on refused connections
# Descriptors kept for what is no counted connection: checkpoints, the catalogue, the log, those
# just taken.
_FILES = 96 + 128
_UNREAD = 24 << 20  # bytes of answers that clients have not read yet, of all connections


@dataclasses.dataclass(frozen=True)
class Limits:
  """What connections are held to.

  Attributes:
    connections: most at once. One more takes the place of that which has waited longest for its
      client; where all are being answered, it gets 503.
    of_a_peer: most at once of one address; 0: no limit, as behind a proxy all come from one.
    header_bytes: most of what a request has beside its body: its line, headers and trailers.
    seconds: until a request has come whole, from its first byte; and until a client reads on.
  """

  connections: int
  of_a_peer: int
  header_bytes: int
  seconds: float


def affordable(wanted: int) -> int:
  """How many connections fit the process' limit on open files, which is raised as far as
  allowed.
  """
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  # The soft limit may be raised up to the hard one without rights.
  if hard == resource.RLIM_INFINITY or hard > soft:
    enough = wanted + 4 * _FILES
    soft = enough if hard == resource.RLIM_INFINITY else min(hard, max(soft, enough))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
  # What the process has open already.
  used = len(os.listdir("/dev/fd"))
  return max(min(wanted, soft - used - _FILES), 1)


class Refusals:
  """Counts what was refused, and tells it in one line every ten seconds at most."""

  def __init__(self):
    self._counts: collections.Counter[str] = collections.Counter()
    self._told = -_QUIET

  def add(self, why: str, client: tuple[str, int] | None) -> None:
    """Counts one; `why` is one of a few fixed texts, never what a client sent."""
    self._counts[why] += 1
    now = time.monotonic()
    # A flood of refusals must not become a flood of lines.
    if now - self._told >= _QUIET:
      total = ", ".join(f"{count} × {why}" for why, count in self._counts.most_common())
      peer = client[0] if client else "?"
      _log.warning("connections refused: %s; the last from %s", total, peer)
      self._counts.clear()
      self._told = now


def _answer(status: str, words: str, retry: bool = False) -> bytes:
  body = json_bytes({"error": words})
  head = [
    f"HTTP/1.1 {status}",
    "content-type: application/json",
    f"content-length: {len(body)}",
    "connection: close",
  ]
  if retry:
    head.append("retry-after: 1")
  return "\r\n".join((*head, "", "")).encode() + body


_NO_ROOM = _answer("503 Service Unavailable", "too many connections", retry=True)
_TOO_LATE = _answer("408 Request Timeout", "the request did not come whole in time")
_TOO_LONG = _answer("431 Request Header Fields Too Large", "the headers are too long")
_NO_HTTP = _answer("400 Bad Request", "this is no HTTP request")


@dataclasses.dataclass
class Shared:
  """What the connections of a server have in common.

  Attributes:
    limits: see `Limits`.
    open_now: those that are open, in the order in which they began to wait for their client.
    unread: those whose client does not read as fast as it is answered, in the order in which they
      began to.
    of_peer: how many each address has.
    refusals: counts what was refused.
  """

  limits: Limits
  open_now: dict["LimitedProtocol", None] = dataclasses.field(default_factory=dict)
  unread: dict["LimitedProtocol", None] = dataclasses.field(default_factory=dict)
  of_peer: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  refusals: Refusals = dataclasses.field(default_factory=Refusals)


def protocol(limits: Limits) -> Callable[..., HttpToolsProtocol]:
  """What makes a connection, for uvicorn's `http` setting."""
  return functools.partial(LimitedProtocol, Shared(limits))


class LimitedProtocol(HttpToolsProtocol):
  """One connection.

  Args:
    shared: what all connections of a server have in common.
    **settings: uvicorn's.
  """

  def __init__(self, shared: Shared, **settings):
    super().__init__(**settings)
    self._shared = shared
    self._limits = shared.limits
    self.logger = _Silent(self.logger)
    # Runs while the client owes us something: a request, the rest of it, or to read the answer.
    self._timer = None
    self._beside = 0  # bytes of the request that are not of its body
    self._body = 0  # and those that are
    self._in_head = False
    self._whole = True  # no request has begun that has not come whole
    self._counted = False

  # Called by asyncio

  def connection_made(self, transport):
    super().connection_made(transport)
    peer = self.client[0] if self.client else ""
    if self._limits.of_a_peer and self._shared.of_peer[peer] >= self._limits.of_a_peer:
      # Refused before it is counted, so that its end takes nothing off.
      self._refuse(_NO_ROOM, "too many connections of one peer")
      return
    if len(self._shared.open_now) >= self._limits.connections and not self._make_room():
      self._refuse(_NO_ROOM, "too many connections")
      return
    # From here on the connection counts, and `connection_lost` takes it off again.
    self._shared.of_peer[peer] += 1
    self._shared.open_now[self] = None
    self._counted = True
    self._wait_for_client()

  def connection_lost(self, exc):
    self._stop_timer()
    self._shared.unread.pop(self, None)
    if self._counted:
      peer = self.client[0] if self.client else ""
      self._shared.of_peer[peer] -= 1
      # Addresses that are gone must not fill the memory.
      if not self._shared.of_peer[peer]:
        del self._shared.of_peer[peer]
      self._shared.open_now.pop(self, None)
    super().connection_lost(exc)

  def data_received(self, data):
    if self._timer is None and self._whole and not self._answering():
      # These are the first bytes after an answer.
      self._wait_for_client()
    # In pieces, so that a limit is noticed before all of a large read is parsed.
    for begin in range(0, len(data), _PIECE):
      piece = data[begin : begin + _PIECE]
      # The parser calls `on_body` inside the call below, which moves the count on.
      before = self._body
      super().data_received(piece)
      # Closing, or refused by the parser: what follows is of no use.
      if self.transport.is_closing() or self.parser is None:
        return
      if not self._whole:
        # A body that comes in chunks of one byte has five beside each.
        self._beside += len(piece) - max(self._body - before, 0)
        if self._beside > self._limits.header_bytes + _CHUNKED * self._body:
          self._refuse(_TOO_LONG, "headers too long")
          return
      # Requests that were read behind one that is still being answered.
      if len(self.pipeline) > _PIPELINED:
        self._refuse(b"", "too many requests at once on one connection")
        return

  def pause_writing(self):
    super().pause_writing()
    self._wait_for_client()
    unread = self._shared.unread
    unread[self] = None
    # Answers that wait in memory, of all clients that read too slowly.
    held = sum(other.transport.get_write_buffer_size() for other in unread)
    while held > _UNREAD and unread:
      # The one that has been unread the longest goes first.
      slowest = next(iter(unread))
      held -= slowest.transport.get_write_buffer_size()
      del unread[slowest]
      slowest._refuse(b"", "too much that is not read")

  def resume_writing(self):
    super().resume_writing()
    self._shared.unread.pop(self, None)
    if self._whole:
      self._stop_timer()

  # Called by the parser

  def on_message_begin(self):
    self._wait_for_client()
    self._in_head = True
    self._whole = False
    self._beside = 0
    self._body = 0
    super().on_message_begin()

  def on_header(self, name, value):
    # What follows a body in chunks (trailers) is of no use to anybody here.
    if self._in_head:
      super().on_header(name, value)

  def on_body(self, body):
    self._body += len(body)
    super().on_body(body)

  def on_headers_complete(self):
    self._in_head = False
    super().on_headers_complete()

  def on_message_complete(self):
    self._whole = True
    # Else the client still owes us to read an earlier answer.
    if not self.flow.write_paused:
      self._stop_timer()
    super().on_message_complete()

  # Called by uvicorn

  def shutdown(self):
    """At the server's end: a request that has not come whole is not waited for."""
    if self._whole:
      super().shutdown()
    else:
      self.transport.close()

  def send_400_response(self, msg):
    del msg
    self._refuse(_NO_HTTP, "no HTTP")

  def _answering(self):
    return self.cycle is not None and not self.cycle.response_complete

  def _wait_for_client(self):
    """Starts the time that a client has, once: later bytes of the same request do not lengthen
    it.
    """
    # Once: a client that sends a byte now and then has no more time for it.
    if self._timer is None and self._counted:
      self._timer = self.loop.call_later(self._limits.seconds, self._too_late)
      # Moves to the end: the first is that which has waited longest.
      self._shared.open_now.pop(self, None)
      self._shared.open_now[self] = None

  def _stop_timer(self):
    if self._timer is not None:
      self._timer.cancel()
      self._timer = None

  def _too_late(self):
    self._timer = None
    # It sent nothing, or does not read: nothing can be told.
    silent = self._whole or self._answering()
    self._refuse(b"" if silent else _TOO_LATE, "too slow")

  def _make_room(self):
    """Closes the connection that has waited longest for its client; whether there was one."""
    # An answer that is being computed is not the client's to hurry.
    waiting = (
      other for other in self._shared.open_now if not other._answering() or not other._whole
    )
    oldest = next(waiting, None)
    if oldest is None:
      return False
    self._shared.open_now.pop(oldest)
    oldest._refuse(b"", "gave its place to a newer connection")
    return True

  def _refuse(self, answer, why):
    self._shared.refusals.add(why, self.client)
    self._stop_timer()
    # An answer that was begun must not be broken into.
    if answer and not self._answering():
      # The answer goes out before the end; `abort` would drop it.
      self.transport.write(answer)
      self.transport.close()
    else:
      self.transport.abort()


class _Silent:
  """uvicorn's logger, without a line for each request that is no HTTP: `Refusals` tells of them."""

  level = logging.CRITICAL

  def __init__(self, logger: logging.Logger):
    self._logger = logger

  def warning(self, *_, **__) -> None:
    """Says nothing."""

  def __getattr__(self, name):
    return getattr(self._logger, name)
