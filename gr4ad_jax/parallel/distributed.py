"""Several processes as one job: its start names who is missing, its end names who was lost.

JAX's own start waits without a word, and where a process is lost, JAX aborts the others with a
stack trace. So the processes first call the roll on the coordinator's port, over TCP
(`roll_call.py`), and keep these connections. The kernel closes them when a process dies, whatever
it died of, and keep-alive probes notice a machine that is gone.

The connections also carry barriers without a time limit, for what one process does while the others
wait, such as fitting codes. A collective operation, in which all processes take part, does not wait
long for one of them, so a barrier stands before those that others may reach much later.
"""

import contextlib
import hashlib
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from gr4ad_jax.parallel.roll_call import Job, Peer, RollCall, StartError, answer

# Seconds in which the others hear of a failure. Once process 0 is gone, JAX aborts them.
_FAREWELL = 1.0


def detect(timeout: float) -> Job:
  """The job as the environment of the launcher tells it: SLURM, a TPU VM pod, GKE, Open MPI.

  Args:
    timeout: seconds that a look-up of the coordinator may take.

  Raises:
    StartError: there is no such environment.
  """
  from jax._src import clusters  # what `jax.distributed.initialize()` asks; it has no public name

  *found, devices = clusters.ClusterEnv.auto_detect_unset_distributed_params(
    None, None, None, None, None, int(timeout)
  )
  if None in found:
    raise StartError(
      "no launcher's environment was found (SLURM, TPU VM, GKE, Open MPI): name the processes by "
      "flags"
    )
  return Job(*found, _named_devices() or tuple(devices or ()))


def _named_devices() -> tuple[int, ...]:
  """The numbers in $JAX_LOCAL_DEVICE_IDS, which is written as 0,1; none where it is not set."""
  return tuple(
    int(number) for number in os.environ.get("JAX_LOCAL_DEVICE_IDS", "").split(",") if number
  )


_link: "_Link | None" = None  # of this process, while it is part of a job


def start(
  job: Job,
  timeout: float,
  settings: str,
  on_lost: Callable[[str], None],
  on_waiting: Callable[[str], None] = lambda text: None,
) -> None:
  """Joins the job. It must be called before anything else of JAX is used.

  Args:
    job: who takes part.
    timeout: seconds that processes may come apart.
    settings: a text that must be the same on all of them.
    on_lost: called in a thread, with one line, once another process is gone or has failed. It must
      end this process, which may hang in a collective operation for good.
    on_waiting: told who is still missing, every ten seconds, on process 0.

  Raises:
    StartError: a process is missing, there twice, or has other settings or another number of
      processes.
  """
  global _link
  host, _, port = job.coordinator.rpartition(":")
  about = {
    "process": job.process,
    "processes": job.processes,
    "settings": hashlib.sha256(settings.encode()).hexdigest()[:16],
    "host": socket.gethostname(),
  }
  # When the roll call returns, process 0 no longer listens on the port, so JAX's coordinator can
  # take it. The connections live on.
  if job.process == 0:
    peers = RollCall(job, int(port), about, on_waiting).run(time.monotonic() + timeout)
  else:
    peers = {0: answer(host.strip("[]"), int(port), about, timeout)}
  _link = _Link(job, peers, on_lost)
  try:
    jax.distributed.initialize(
      *job[:3],
      local_device_ids=list(job.local_devices or _named_devices()),
      initialization_timeout=60,
    )
  except Exception as error:
    # Whatever it is, the others must hear of it.
    finish(1)
    raise StartError(f"JAX does not start: {' '.join(str(error).split())[:300]}") from error


def barrier(name: str) -> None:
  """Returns when all processes have come to the barrier of this name, however long that takes.

  A process that is no part of a job goes through at once.
  """
  if _link:
    _link.barrier(name)


def finish(status: int) -> None:
  """Leaves the job, and tells the others.

  With status 0 it waits until all are done. With another status the others end as well.
  """
  global _link
  if not _link:
    return
  if status:
    _link.fail(status)
  else:
    _link.barrier("end")
    _link.close()
    # All are done, so whatever the shutdown meets is no failure of the job.
    with contextlib.suppress(Exception):
      jax.distributed.shutdown()
  _link = None


def share(rows: int) -> np.ndarray:
  """Which of `rows` rows are this process', as row numbers.

  Each process has as many, because collective operations need equal shapes. Where the rows do not
  suffice for that, the last one stands there again.
  """
  each = -(-rows // jax.process_count())
  return np.minimum(jax.process_index() * each + np.arange(each), max(rows - 1, 0))


def gather(rows: np.ndarray) -> np.ndarray:
  """The rows of all processes, in the order of the processes. All must call it.

  Of rows that `share` has given out, the repetitions come last.
  """
  if jax.process_count() == 1:
    return rows
  # Collective operations do not wait long for a process that comes late.
  barrier("gather")
  # The dtype is put back: JAX has 32 bits where NumPy has 64, unless it is told otherwise.
  return multihost_utils.process_allgather(rows, tiled=True).astype(rows.dtype)


def agreed(here: bool) -> bool:
  """Whether it holds on every process. All must call it."""
  return bool(gather(np.asarray([here])).all())


def same(digest: bytes) -> bool:
  """Whether the first eight bytes of a digest are the same on every process. All must call it."""
  # Eight bytes as two int32, since JAX would cut an int64 down. The row of this process, (1, 2),
  # becomes the rows of all, (P, 2).
  all_P2 = gather(np.frombuffer(digest[:8], np.int32)[None])
  return bool((all_P2 == all_P2[0]).all())


class _Link:
  """The connections of a running job.

  Process 0 has one to each other process, and these have one each, to process 0. Messages are
  objects of JSON:

    arrived: name. This process has come to a barrier; told to process 0.
    passed: name. All have come to it; told by process 0.
    failed: status, process. This process ends by itself.
    lost: reason. Another process is gone, so the job ends.
  """

  def __init__(self, job: Job, peers: dict[int, Peer], on_lost: Callable[[str], None]):
    self._job = job
    self._peers = peers
    self._on_lost = on_lost
    self._changed = threading.Condition()
    self._closed = False
    self._arrived: dict[str, set[int]] = {}
    self._passed: set[str] = set()
    threading.Thread(target=self._watch, name="job", daemon=True).start()

  def barrier(self, name: str) -> None:
    self._arrive(name, self._job.process)
    if self._job.process:
      self._peers[0].send(arrived=name)
    with self._changed:
      self._changed.wait_for(lambda: name in self._passed)
      # The next barrier may have the same name.
      self._passed.discard(name)

  def fail(self, status: int) -> None:
    for peer in self._peers.values():
      peer.send(failed=status, process=self._job.process)
    self.close()
    time.sleep(_FAREWELL)

  def close(self) -> None:
    self._closed = True

  def _arrive(self, name: str, process: int) -> None:
    """Notes who has come to a barrier; on process 0 the last one lets all pass."""
    with self._changed:
      # Only process 0 counts; the others wait for its word (`_hear`).
      if self._job.process:
        return
      here = self._arrived.setdefault(name, set())
      here.add(process)
      if len(here) < self._job.processes:
        return
      del self._arrived[name]
      for peer in self._peers.values():
        peer.send(passed=name)
      self._passed.add(name)
      self._changed.notify_all()

  def _watch(self) -> None:
    """Reads what the others say until one of them is gone."""
    with selectors.DefaultSelector() as selector:
      for process, peer in self._peers.items():
        selector.register(peer.socket, selectors.EVENT_READ, (process, peer))
      while not self._closed:
        # Once a second it looks whether this side has closed.
        for key, _ in selector.select(timeout=1.0):
          process, peer = key.data
          try:
            messages = peer.messages()
            if messages is None:
              host = peer.about.get("host", self._job.coordinator)
              self._lose(
                f"process {process} on {host} is gone (the same command goes on from the last "
                "checkpoint)"
              )
              return
            # A list, so that every message is acted on: `any` of a generator would stop early.
            if any([self._hear(process, message) for message in messages]):
              return
          except (ValueError, KeyError) as error:
            self._lose(f"process {process} sends what cannot be read: {error!r}")
            return

  def _hear(self, process: int, message: dict) -> bool:
    """Acts on a message; True where it ends the job."""
    if "arrived" in message:
      self._arrive(message["arrived"], process)
    elif "passed" in message:
      with self._changed:
        self._passed.add(message["passed"])
        self._changed.notify_all()
    elif "lost" in message:
      self._lose(message["lost"])
      return True
    elif "failed" in message:
      # A process that fails for the same reason tells it itself.
      time.sleep(_FAREWELL / 2)
      self._lose(f"process {message['process']} failed with status {message['failed']}")
      return True
    return False

  def _lose(self, reason: str) -> None:
    """Ends the job here, and tells the others why. After a `close` it does nothing."""
    if self._closed:
      return
    # Process 0 alone is linked to all. It passes the reason on, and gives the others time to hear
    # it, since JAX aborts them once process 0 is gone.
    for peer in self._peers.values():
      peer.send(lost=reason)
    if self._job.process == 0 and self._job.processes > 2:
      time.sleep(_FAREWELL)
    self._on_lost(reason)
