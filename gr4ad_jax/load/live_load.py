"""A run's servers under events and recommendations, with the learner stopped and then running.

All is done on a copy of the run, which is removed afterwards. With a stream on Redis there are two
servers: one is posted to, the other is asked.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gr4ad_jax.benchmarks import timing
from gr4ad_jax.data import ad_store
from gr4ad_jax.evaluation import report_tables
from gr4ad_jax.features.trends import Trends
from gr4ad_jax.load import event_load, http_load
from gr4ad_jax.load.event_load import Rates
from gr4ad_jax.load.serve_load import Server

_RATES = Rates()
_NICE = 10  # the learner lets the servers go first, as in `experiments.live`
_WARM = 10.0  # seconds of the load before what is counted
_PATIENCE = 600.0  # seconds that a learner has to begin


def run_suite(
  workdir: str, seconds: float, stream: str = "", out: str = "", *, serve: Sequence[str],
  learn: Sequence[str], told: Callable[[str], None] = lambda _: None, rates: Rates = _RATES,
) -> dict[str, Any]:  # fmt: skip
  """Loads the servers of a run, without a learner and beside one, and writes the figures.

  Args:
    workdir: a trained run.
    seconds: of each of the two loads.
    stream: an empty one of Redis; "": a file of the copy.
    out: JSON file of the figures. Empty: none is written.
    serve: command of a server.
    learn: command of a learner.
    told: hears of every part before it begins.
    rates: of the load.

  Returns:
    A dict for JSON: of `frozen` and `learning` what `event_load.report` returns, with the load of
    the machine; of `learning` also the last line that the learner wrote.

  Raises:
    RuntimeError: a server or the learner did not start, or the learner ended before the load did.
  """
  found: dict[str, Any] = {"machine": timing.machine(), "seconds": seconds, **rates._asdict()}
  with tempfile.TemporaryDirectory() as folder:
    copy = os.path.join(folder, "run")
    left = shutil.ignore_patterns("live", "eval", "candidates", "tensorboard")
    shutil.copytree(workdir, copy, ignore=left)
    url = stream or f"sqlite:{folder}/stream.sqlite"
    places = [f"{folder}/server{number}" for number in range(2 if stream else 1)]
    ads = ad_store.load_ads(os.path.join(copy, "index")).ad_id.tolist()
    begin = int(Trends.load(os.path.join(copy, "features")).end)
    with contextlib.ExitStack() as running:
      servers = []
      for place in places:
        told(f"starting server {len(servers) + 1} of {len(places)}")
        # One stream and one run, and a folder of each server's own.
        flags = (f"--stream={url}", f"--state_dir={place}", "--checkpoint=promoted")
        servers.append(running.enter_context(Server(copy, flags, command=serve)))
      ask = servers[-1].address
      users = asyncio.run(_users(ask))
      # Batches go on from one load to the next: the learner sees one stream. By the time, as ids
      # that a stream has already would not count again.
      batches = event_load.events_of(users, ads, begin, rates.batch, seed=int(time.time()))
      about = servers[0].address, ask, batches, users, rates
      told(f"without a learner: {seconds:.0f} s of load")
      found["frozen"] = _measured(*about, seconds)
      told("starting the learner")
      with _learner((*learn, f"--workdir={copy}", f"--stream={url}"), folder) as last_line:
        told(f"beside a learner: {seconds:.0f} s of load")
        found["learning"] = _measured(*about, seconds)
        found["learning"]["learner"] = last_line()
  if out:
    report_tables.write_json(out, found)
  return found


def in_words(found: dict[str, Any]) -> str:
  """The figures of `run_suite` in words."""
  lines = []
  for name in ("frozen", "learning"):
    load = found[name]["machine_load"]
    lines.append(f"{name} (load of the machine {load:.1f}): {event_load.in_words(found[name])}")
  lines.append(f"the learner's last line: {found['learning']['learner']}")
  return "\n".join(lines)


def _measured(
  post: str, ask: str, batches: Iterator[tuple[str, list[dict[str, Any]]]], users: Sequence[str],
  rates: Rates, seconds: float,
) -> dict[str, Any]:  # fmt: skip
  """Figures of a load, after a short one that is not counted."""
  asyncio.run(event_load.load(post, ask, batches, users, rates, _WARM))
  outcomes = asyncio.run(event_load.load(post, ask, batches, users, rates, seconds))
  figures = event_load.report(outcomes, rates, seconds)
  return figures | {"machine_load": os.getloadavg()[0]}


async def _users(address: str) -> list[str]:
  client = http_load.Client(address)
  try:
    return await http_load.users_of(client)
  finally:
    client.close()


@contextlib.contextmanager
def _learner(command: Sequence[str], folder: str) -> Iterator[Callable[[], str]]:
  """A learner that has begun, for the length of a block, which gets what returns its last line.

  Raises:
    RuntimeError: it did not begin in time, or ended before the block did.
  """
  path = os.path.join(folder, "learner.txt")

  def lines() -> list[str]:
    with open(path, encoding="utf-8") as log:
      return log.read().strip().splitlines() or ["it wrote nothing"]

  with open(path, "w", encoding="utf-8") as log:
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
  try:
    os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
    until = time.monotonic() + _PATIENCE
    # Its first line of this kind comes when the run and its log are open.
    while not any(line.startswith("learning in") for line in lines()):
      if process.poll() is not None or time.monotonic() > until:
        raise RuntimeError(f"the learner did not start: {lines()[-1]}")
      time.sleep(0.1)
    yield lambda: lines()[-1]
    # Without one the figures would be of something else.
    if process.poll() is not None:
      raise RuntimeError(f"the learner ended: {lines()[-1]}")
  finally:
    process.terminate()
    process.wait()
