"""The roll call of a job of several processes: who is there, who is missing, who differs.

Process 0, the coordinator, listens on its port, and the others connect to it. A message is one line
of JSON. A process says who it is (`about`). The answer is `here`, and then `begin`, once all are
there; or `refused`, with the reason.
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
_GONE = _SILENCE[0] + _SILENCE[1] * _SILENCE[2]  # seconds until a silent machine counts as gone
_PAUSE = 0.2  # seconds between attempts to connect


class Job(NamedTuple):
  """Who this process is.

  Attributes:
    coordinator: host:port of process 0, which all can reach.
    processes: number of processes of the whole job.
    process: number of this one, from 0.
    local_devices: which accelerators of this machine are this process'; empty: all.
  """

  coordinator: str
  processes: int
  process: int
  local_devices: tuple[int, ...] = ()


class StartError(RuntimeError):
  """The job cannot start; one line says who is missing or differs."""


class Peer:
  """A connection to another process, which carries lines of JSON.

  Attributes:
    socket: the connection.
    about: what the other process has said of itself.
  """

  def __init__(self, connection: socket.socket):
    self.socket = connection
    self.about = {}
    self._unread = b""
    self._sending = threading.Lock()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in zip(("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"), _SILENCE, strict=True):
      if hasattr(socket, name):
        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    # Keep-alive probes are sent on an idle connection alone. This is the same limit for what was
    # sent and is not acknowledged.
    if hasattr(socket, "TCP_USER_TIMEOUT"):
      connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _GONE)

  def send(self, **message) -> None:
    """Sends a message; several threads may. That the peer is gone is noticed by who reads."""
    with contextlib.suppress(OSError), self._sending:
      self.socket.sendall(json.dumps(message).encode() + b"\n")

  def messages(self) -> list[dict] | None:
    """Messages that can be read now; None: the other side is gone.

    Where there is nothing yet it waits, up to the socket's timeout, and may return none.

    Raises:
      ValueError: a line that is no JSON object.
    """
    try:
      data = self.socket.recv(65536)
    except TimeoutError:
      return []
    except OSError:
      return None
    if not data:
      return None
    # What follows the last line end is the beginning of a message whose rest is on its way.
    *lines, self._unread = (self._unread + data).split(b"\n")
    return [_object(line) for line in lines]


def _object(line: bytes) -> dict:
  """A line's JSON object. Raises ValueError where it is none, whatever a stranger sends."""
  try:
    found = json.loads(line)
  except RecursionError as error:
    # A text of 60,000 brackets ends in this, and in no ValueError.
    raise ValueError("a line is nested too deeply") from error
  if not isinstance(found, dict):
    raise ValueError("a line is no JSON object")
  return found


class RollCall:
  """Process 0's side of the start."""

  def __init__(self, job: Job, port: int, about: dict, on_waiting: Callable[[str], None]):
    self._job = job
    self._port = port
    self._about = about
    self._on_waiting = on_waiting
    self._peers: dict[int, Peer] = {}
    self._refused: dict[str, None] = {}  # why processes of other jobs were, in order, each once

  def run(self, deadline: float) -> dict[int, Peer]:
    """Waits until all are there, and returns the connections to them by process.

    Args:
      deadline: when to give up, by `time.monotonic()`.

    Raises:
      StartError: a process is missing, comes twice or has other flags, or the port cannot be had.
        Those that are there are told why, except in the last case. The message names those that
        were refused as they are of a job of another size.
    """
    # Both families of addresses where the machine has them.
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
            also = "".join(f"; {reason}" for reason in self._refused)
            raise StartError(
              f"{names} did not come to {self._job.coordinator} in time (--start_timeout){also}"
            )
          if now - told > 10:
            told = now
            self._on_waiting(f"waiting for {names} at {self._job.coordinator}")
          # It wakes up once a second, to look who has left and whether the time is over.
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
    """Numbers of the processes that have not come, or have left again."""
    # Nobody speaks before the job begins, so what can be read is the end of a connection.
    connected = {peer.socket: number for number, peer in self._peers.items()}
    for ready in select.select(list(connected), [], [], 0)[0]:
      peer = self._peers[connected[ready]]
      try:
        gone = peer.messages() is None
      except ValueError:
        # It speaks, and not as our processes do.
        gone = True
      if gone:
        peer.socket.close()
        del self._peers[connected[ready]]
    return [number for number in range(1, self._job.processes) if number not in self._peers]

  def _admit(self, connection: socket.socket) -> None:
    """Takes in who has connected. Raises StartError where a process of this job does not fit it.

    Who is of another job is refused, and does not end this one: two jobs may have got one port.
    """
    connection.settimeout(5.0)
    try:
      peer = Peer(connection)
      about = (peer.messages() or [{}])[0]
      number = int(about["process"])
      processes = int(about["processes"])
    except (OSError, KeyError, ValueError, TypeError, OverflowError):
      # Not one of ours; a port scanner, say.
      connection.close()
      return
    connection.settimeout(None)
    # A process that comes again has left before, and must not count as there twice.
    self._missing()
    who = f"process {number} on {about.get('host')}"
    own = self._about
    reason = ""
    if processes != self._job.processes:
      reason = f"{who} was started as one of {processes}, process 0 as one of {self._job.processes}"
      peer.send(refused=reason)
      connection.close()
      self._refused[reason] = None
      self._on_waiting(f"{reason}: it is refused")
      return
    if number in self._peers or not 0 < number < processes:
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
  """The other processes' side of the start: waits for process 0, and for its word to begin.

  Args:
    host: where process 0 is.
    port: on which it listens.
    about: what this process says of itself.
    timeout: seconds that processes may come apart.

  Returns:
    The connection to process 0.

  Raises:
    StartError: process 0 is missing, or it refuses this process or the job.
  """
  deadline = time.monotonic() + timeout
  while True:
    try:
      peer = Peer(socket.create_connection((host, port), timeout=5.0))
      return _wait_for_all(peer, host, port, about, timeout)
    except (OSError, ValueError) as error:
      # Nobody is there, or it is not process 0: a server of a job that is ending, say. Try again.
      if time.monotonic() > deadline:
        reason = (
          f"no answer at {host}:{port} in time (--start_timeout): "
          f"{getattr(error, 'strerror', None) or error}"
        )
        raise StartError(f"process 0 is missing: {reason}") from error
      time.sleep(_PAUSE)


def _wait_for_all(peer: Peer, host: str, port: int, about: dict, timeout: float) -> Peer:
  """Says who this process is, and waits for the word to begin.

  Raises:
    StartError: process 0 refuses, ends, or does not begin.
    OSError, ValueError: it is not process 0 that answers.
  """
  peer.send(**about)
  # Five seconds more than process 0 waits, which says in time who is missing.
  heard = False
  deadline = time.monotonic() + timeout + 5
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
      # `here`: it is process 0. From now on its silence only means that others are missing, and its
      # end is the end of the start.
      heard = True
      peer.socket.settimeout(1.0)
  raise StartError(f"process 0 at {host}:{port} does not begin")
