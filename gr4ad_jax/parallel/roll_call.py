"""The roll call of a job of several processes, on the coordinator's port: who is there, who is
missing, who differs.
"""

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

_SILENCE = (5, 5, 6)  # keep-alive: idle seconds before the first probe, between probes, and probes
_GONE = _SILENCE[0] + _SILENCE[1] * _SILENCE[2]  # seconds
_PAUSE = 0.2  # seconds between attempts to connect


class Job(NamedTuple):
  """Who this process is.

  Attributes:
    coordinator: host:port of process 0, reachable from all.
    processes: of the whole job.
    process: number of this one, from 0.
    local_devices: accelerators of this machine that are this process'; empty: all.
  """

  coordinator: str
  processes: int
  process: int
  local_devices: tuple[int, ...] = ()


class StartError(RuntimeError):
  """The job cannot start; one line says who is missing or differs."""


class Peer:
  """A connection to another process, in lines of JSON."""

  def __init__(self, connection: socket.socket):
    self.socket, self.about, self._unread, self._sending = connection, {}, b"", threading.Lock()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in zip(("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"), _SILENCE, strict=True):
      if hasattr(socket, name):
        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # the same for what was sent and is not acknowledged
      connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _GONE)

  def send(self, **message) -> None:
    with (
      contextlib.suppress(OSError),
      self._sending,
    ):  # that a peer is gone is noticed where it is read
      self.socket.sendall(json.dumps(message).encode() + b"\n")

  def messages(self) -> list[dict] | None:
    """What can be read now; None: the other side is gone. Blocks where there is nothing yet, up
    to a timeout.
    """
    try:
      data = self.socket.recv(65536)
    except TimeoutError:
      return []
    except OSError:
      return None
    if not data:
      return None
    *lines, self._unread = (self._unread + data).split(b"\n")
    return [json.loads(line) for line in lines]


class RollCall:
  """Process 0's side of the start."""

  def __init__(self, job: Job, port: int, about: dict, on_waiting: Callable[[str], None]):
    self._job, self._port, self._about, self._on_waiting = job, port, about, on_waiting
    self._peers: dict[int, Peer] = {}

  def run(self, deadline: float) -> dict[int, Peer]:
    """Waits until all are there. Raises StartError, and tells those that are there why."""
    both = (
      {"family": socket.AF_INET6, "dualstack_ipv6": True} if socket.has_dualstack_ipv6() else {}
    )
    try:
      with socket.create_server(("", self._port), backlog=self._job.processes, **both) as server:
        told = time.monotonic()
        while missing := self._missing():
          now = time.monotonic()
          names = (
            f"process{'es' * (len(missing) > 1)} {', '.join(map(str, missing))} of "
            f"{self._job.processes}"
          )
          if now > deadline:
            raise StartError(
              f"{names} did not come to {self._job.coordinator} in time (--start_timeout)"
            )
          if now - told > 10:
            told = now
            self._on_waiting(f"waiting for {names} at {self._job.coordinator}")
          server.settimeout(min(1.0, max(0.01, deadline - now)))
          with contextlib.suppress(TimeoutError):
            self._admit(server.accept()[0])
    except OSError as error:
      raise StartError(
        f"process 0 cannot listen on port {self._port}: {error.strerror or error}"
      ) from error
    except StartError as error:
      for peer in self._peers.values():
        peer.send(refused=str(error))
      raise
    for peer in self._peers.values():
      peer.send(begin=True)
    return self._peers

  def _missing(self) -> list[int]:
    """Who has not come, or has left again."""
    connected = {peer.socket: number for number, peer in self._peers.items()}
    for ready in select.select(list(connected), [], [], 0)[0]:
      if self._peers[connected[ready]].messages() is None:
        del self._peers[connected[ready]]
    return [number for number in range(1, self._job.processes) if number not in self._peers]

  def _admit(self, connection: socket.socket) -> None:
    connection.settimeout(5.0)
    try:
      peer = Peer(connection)
      about = (peer.messages() or [{}])[0]
      number, processes = int(about["process"]), int(about["processes"])
    except (
      OSError,
      KeyError,
      ValueError,
      TypeError,
      AttributeError,
    ):  # not one of ours: a port scanner, say
      connection.close()
      return
    connection.settimeout(None)
    self._missing()  # one that comes again has left before
    who, own = f"process {number} on {about.get('host')}", self._about
    reason = ""
    if processes != self._job.processes:
      reason = f"{who} was started as one of {processes}, process 0 as one of {self._job.processes}"
    elif number in self._peers or not 0 < number < processes:
      other = self._peers[number].about["host"] if number in self._peers else own["host"]
      reason = f"process {number} is there twice, on {other} and on {about.get('host')}"
    elif about.get("settings") != own["settings"]:
      reason = f"{who} was started with other flags than process 0"
    peer.about = about
    if reason:
      peer.send(refused=reason)
      raise StartError(reason)
    self._peers[number] = peer
    peer.send(here=True)


def answer(host: str, port: int, about: dict, timeout: float) -> Peer:
  """The other processes' side of the start: waits for process 0, and for its word that all are
  there.
  """
  deadline = time.monotonic() + timeout
  while True:
    try:
      peer = Peer(socket.create_connection((host, port), timeout=5.0))
      return _wait_for_all(peer, host, port, about, timeout)
    except (
      OSError,
      ValueError,
    ) as error:  # nobody there, or not process 0: a server of a job that is ending, say
      if time.monotonic() > deadline:
        reason = (
          f"no answer at {host}:{port} in time (--start_timeout): "
          f"{getattr(error, 'strerror', None) or error}"
        )
        raise StartError(f"process 0 is missing: {reason}") from error
      time.sleep(_PAUSE)


def _wait_for_all(peer: Peer, host: str, port: int, about: dict, timeout: float) -> Peer:
  """Says who one is, and waits for the word that all are there. OSError or ValueError: it is not
  process 0.
  """
  peer.send(**about)
  heard, deadline = (
    False,
    time.monotonic() + timeout + 5,
  )  # process 0 itself says in time who is missing
  while time.monotonic() < deadline:
    messages = peer.messages()
    if messages is None and heard:
      raise StartError(f"process 0 at {host}:{port} ended before all processes were there")
    if messages is None or (not messages and not heard):
      raise ConnectionError("it does not answer as process 0 does")
    for message in messages:
      if "refused" in message:
        raise StartError(message["refused"])
      if "begin" in message:
        peer.socket.settimeout(None)
        return peer
      heard = True
      peer.socket.settimeout(1.0)
  raise StartError(f"process 0 at {host}:{port} does not begin")
