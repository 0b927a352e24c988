"""How a server holds its latency target: at steady load, at three times its capacity, and after.

It is measured with TABS (docs/design/method.md §4) on and off. The server is a process of its own,
seen from outside: what is answered, when, with which beam width, and how much memory it holds. The
result cache is passed by, so that every accepted request costs a search.
"""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gr4ad_jax.benchmarks import timing
from gr4ad_jax.evaluation import report_tables
from gr4ad_jax.load import http_load
from gr4ad_jax.load.http_load import Client, Phase
from gr4ad_jax.load.load_report import Load, plot_load, report

# Loads, as shares of the capacity.
IDLE = 0.1
STEADY = 0.5
OVERLOAD = 3.0
WORKERS = 64  # of the closed loop that finds the capacity: more than wait for one batch
REQUEST = {"k": 10, "cache": False, "fallback": False}
Told = Callable[[str], None]


class Server:
  """A server process, for a `with` statement: inside it is ready and compiles nothing more; it is
  told to end (SIGTERM) after.

  Args:
    workdir: of the run that it serves.
    flags: further flags, as --tabs=false.
    command: what starts it. It prints its address, as it takes a free port.
    patience: seconds until it must be ready, and until it must have ended.

  Attributes:
    address: as http://127.0.0.1:8080.
    status: how the process ended.

  Raises:
    RuntimeError: it ended, or was not ready in time: the message has the last line that it wrote;
      or it is no server of this library.
  """

  def __init__(
    self,
    workdir: str,
    flags: Sequence[str] = (),
    *,
    command: Sequence[str],
    patience: float = 600,
  ):
    self._arguments = [*command, f"--workdir={workdir}", "--port=0", *flags]
    self._patience = patience
    self.address = ""
    self.status = None

  def __enter__(self) -> "Server":
    # A file and not a pipe: a full pipe would stop the server.
    self._log = tempfile.TemporaryFile("w+")
    self._process = subprocess.Popen(self._arguments, stdout=self._log, stderr=subprocess.STDOUT)
    try:
      self.address = self._wait_for_address()
      asyncio.run(self._wait_for_searches())
    except BaseException:
      # `with` does not call `__exit__` where this raises.
      self.__exit__()
      raise
    return self

  def __exit__(self, *_) -> None:
    self._process.send_signal(signal.SIGTERM)
    try:
      self.status = self._process.wait(self._patience)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self.status = self._process.wait()
    self._log.close()

  def memory(self) -> int:
    """Bytes of memory that the process holds (Linux)."""
    with open(f"/proc/{self._process.pid}/statm", encoding="ascii") as file:
      # The second field of statm: resident pages.
      return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

  def _wait_for_address(self) -> str:
    end = time.monotonic() + self._patience
    while time.monotonic() < end:
      written = self._written()
      if found := re.search(r"https?://[^\s/]+", written):
        return found[0]
      if self._process.poll() is not None:
        break
      time.sleep(0.05)
    # The last line that it wrote is most often the reason.
    last = (self._written().strip().splitlines() or ["it wrote nothing"])[-1]
    raise RuntimeError(f"the server did not start: {last}")

  async def _wait_for_searches(self) -> None:
    client = Client(self.address)
    try:
      await http_load.until_compiled(client, self._patience)
    except (OSError, ValueError) as error:
      raise RuntimeError(f"{self.address} is no server of this library: {error}") from error
    finally:
      client.close()

  def _written(self) -> str:
    # No seek: the server writes at the same offset.
    return os.pread(self._log.fileno(), 1 << 20, 0).decode(errors="replace")


def run_suite(
  workdir: str,
  minutes: float,
  out: str = "",
  *,
  command: Sequence[str],
  told: Told = lambda _: None,
  seed: int = 0,
) -> dict[str, Any]:
  """Loads a server of a run with TABS, then one without, and writes figures and chart.

  With TABS, its capacity is found first. Then come idle, steady load, overload and steady load
  again, each for a tenth of `minutes`, overload for twice that. Then comes steady load for
  `minutes`. Without TABS it is the same, at the same rates, without the last part.

  Args:
    workdir: a trained run.
    minutes: of the long steady load.
    out: JSON file of the figures, with the chart beside it as .png. Empty: neither is written.
    command: what starts the server.
    told: hears of every part before it begins.
    seed: of arrivals and users.

  Returns:
    A dict for JSON: `capacity`, requests a second; by `tabs` and `fixed` what `report` returns.

  Raises:
    RuntimeError: the server did not start, or is no server of this library.
  """
  part = 6 * minutes  # seconds: a tenth of the minutes
  found: dict[str, Any] = {
    "machine": timing.machine(),
    "minutes": minutes,
    "request": REQUEST,
    "capacity": {},
  }
  rate = 0.0
  for name, flags in (("tabs", ("--tabs=true",)), ("fixed", ("--tabs=false",))):
    told(f"{name}: starting the server")
    with Server(workdir, flags, command=command) as server:
      capacity = asyncio.run(find_capacity(server.address, part, seed))
      # The rate of the first server, so that both meet the same load.
      rate = rate or capacity
      found["capacity"][name] = capacity
      told(f"{name}: {capacity:.1f} requests a second at most; now idle, steady, overload, steady")
      phases = _timeline(rate, part)
      if name == "tabs":
        # Whether memory grows is asked of one server: it is the same program in both.
        phases.append(Phase("long", STEADY * rate, 60 * minutes))
      measured = asyncio.run(load(server, phases, seed))
    found[name] = report(measured) | {"exit_status": server.status}
  if out:
    report_tables.write_json(out, found)
    plot_load(found, os.path.splitext(out)[0] + ".png")
  return found


def in_words(found: Mapping[str, Any]) -> str:
  """The figures of `run_suite` in words."""
  lines = []
  for name in ("tabs", "fixed"):
    part = found[name]
    lines.append(
      f"{name}: {found['capacity'][name]:.1f} requests/s at most, target {part['target_ms']:.0f} ms"
    )
    for phase, row in part["phases"].items():
      accepted = row["accepted_ms"] or {"p50": float("nan"), "p99": float("nan")}
      lines.append(
        f"  {phase:<9} {row['offered_per_s']:7.1f}/s offered, {row['accepted_per_s']:7.1f}/s "
        f"answered, p50 {accepted['p50']:6.1f} ms, p99 {accepted['p99']:6.1f} ms, width "
        f"{row['mean_width'] or 0:5.0f}, {row['refused']} refused, {row['errors']} errors"
      )
    lines.append(
      "  " + ", ".join(f"{what.replace('_', ' ')}: {kept}" for what, kept in part["holds"].items())
    )
  return "\n".join(lines)


def _timeline(rate: float, part: float) -> list[Phase]:
  """The phases that both servers go through, for a capacity a second and a part's seconds."""
  steady = STEADY * rate
  return [
    Phase("idle", IDLE * rate, part),
    Phase("steady", steady, part),
    Phase("overload", OVERLOAD * rate, 2 * part),
    Phase("recovery", steady, part),
  ]


async def find_capacity(address: str, seconds: float, seed: int = 0) -> float:
  """Searched answers a second where requests never run out, after a quarter of the time to warm up.

  Raises:
    RuntimeError: the server tells no users, or answers no request.
  """
  async with _requests(address, seed) as (client, bodies):
    outcomes = await http_load.closed_loop(client, bodies, WORKERS, seconds)
  ends = [o.due + o.seconds for o in outcomes if o.status == 200]
  # Answers are counted by when they came, after the warm-up.
  count = sum(seconds / 4 <= end < seconds for end in ends)
  if not count:
    raise RuntimeError(f"the server answered none of {len(outcomes)} requests")
  # Three quarters of the time are left behind the warm-up.
  return count / (0.75 * seconds)


async def load(server: Server, phases: Sequence[Phase], seed: int = 0) -> Load:
  """Sends the phases' requests when they are due, and watches the server meanwhile."""
  begin = time.monotonic()
  memory = []

  async def watch() -> None:
    while True:
      memory.append((time.monotonic() - begin, server.memory()))
      await asyncio.sleep(1)

  async with _requests(server.address, seed) as (client, bodies):
    target = await http_load.target_of(client) / 1e3
    watching = asyncio.create_task(watch())
    try:
      outcomes = await http_load.open_loop(client, bodies, phases, seed)
    finally:
      watching.cancel()
  return Load(phases, outcomes, memory, target)


@contextlib.asynccontextmanager
async def _requests(address: str, seed: int):
  """A client, and endless requests of the server's own users."""
  client = Client(address)
  try:
    try:
      users = await http_load.users_of(client)
    except (OSError, ValueError) as error:
      raise RuntimeError(f"{address} is no server of this library: {error}") from error
    yield client, http_load.requests_of(users, seed, **REQUEST)
  finally:
    client.close()
