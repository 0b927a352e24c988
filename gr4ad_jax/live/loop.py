"""The loop of one machine as services: server and page, learner, reward system, and a replay."""

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence

from gr4ad_jax.live.supervisor import Service

_PATIENCE = 2.0  # seconds that the server has to say whether it is ready
_BEHIND = 10  # learner and reward system let the server go first
_PART = 64  # answers that the reward system looks at together: so that there soon are lists


def services(
  workdir: str, port: int, *, serve: Sequence[str] = (), learn: bool = True, propose: bool = True,
  replay: Sequence[str] | None = None, python: str = sys.executable, package: str = "experiments",
) -> list[Service]:  # fmt: skip
  """What runs, in the order in which it is started.

  Args:
    workdir: a trained run.
    port: of the server, on this machine.
    serve: further flags of the server.
    learn: whether a learner runs.
    propose: whether a reward system runs.
    replay: further flags of `experiments.play`; None: no log is played.
    python: the interpreter.
    package: where the binaries are.
  """
  address = f"http://127.0.0.1:{port}"
  stream = f"--stream=sqlite:{os.path.join(workdir, 'live', 'stream.sqlite')}"
  place = f"--workdir={workdir}"

  def command(binary: str, *flags: str) -> tuple[str, ...]:
    return (python, "-m", f"{package}.{binary}", place, *flags)

  found = [
    Service(
      "server",
      command("serve", f"--port={port}", stream, "--checkpoint=promoted", *serve),
      lambda: is_ready(address),
    )
  ]
  # The replay comes before those that need minutes to be up: they read the stream from its start.
  if replay is not None:
    found.append(Service("replay", command("play", f"--address={address}", *replay), once=True))
  if learn:
    found.append(Service("learner", command("learn", stream), nice=_BEHIND))
  if propose:
    part = (f"--part={_PART}", f"--sample={_PART // 4}")
    found.append(Service("rewards", command("propose", stream, *part), nice=_BEHIND))
  return found


def is_ready(address: str) -> bool:
  """Whether a server says that it answers."""
  try:
    with urllib.request.urlopen(f"{address}/readyz", timeout=_PATIENCE) as reply:
      return reply.status == 200
  except (OSError, urllib.error.URLError):
    return False
