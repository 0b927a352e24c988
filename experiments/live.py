"""The whole loop on one machine: server and page, learner, reward system, and a log that is played.

  python -m experiments.live --workdir=runs/live --replay=2010-12-01

Where no run lies in the workdir, one is trained first on what had happened before the replay's day
(minutes). What dies is started again; Ctrl-C or SIGTERM stops all, in order, and the same command
goes on. Without --replay events come from whoever posts them.
"""

import os
import signal
import subprocess
import sys

from absl import flags

from gr4ad_jax import config as config_lib
from gr4ad_jax.live import loop
from gr4ad_jax.live.supervisor import Supervisor

from . import flags as flags_lib

_WORKDIR = flags.DEFINE_string("workdir", "", "A trained run, or where one is to lie.")
_REPLAY = flags.DEFINE_string(
  "replay", "", "First day of the log that is played, YYYY-MM-DD; empty: none is."
)
_SPEED = flags.DEFINE_float(
  "speed", 0.0, "Seconds of the log a second; 0: as fast as the server answers.", lower_bound=0
)
_PORT = flags.DEFINE_integer("port", 8080, "Of the server.", lower_bound=1, upper_bound=65535)
_ARMS = flags.DEFINE_string("arms", "", "File of the server's arms; empty: one, what is promoted.")
_LEARN = flags.DEFINE_boolean("learn", True, "Whether a learner runs.")
_PROPOSE = flags.DEFINE_boolean("propose", True, "Whether the reward system runs.")
_FLAGFILE = flags.DEFINE_string(
  "train_flagfile",
  os.path.join(os.path.dirname(__file__), "flagfiles", "online_retail_until_december.flags"),
  "How a run is trained where there is none.",
)


def train(workdir: str, day: str, flagfile: str) -> int:
  """Trains a run that knows what had happened before a day; all, where it is empty. Returns the
  exit status.
  """
  command = [
    sys.executable, "-m", f"{__package__}.train", f"--flagfile={flagfile}", f"--workdir={workdir}",
    "--fit_splits=train+valid+test", "--noevaluate", f"--until={day}",
  ]  # fmt: skip
  print(f"no trained run lies in {workdir}: training one first", flush=True)
  return subprocess.run(command, check=False).returncode


def main(argv):
  """Runs the loop until it is stopped."""
  del argv
  workdir = _WORKDIR.value
  if not workdir:
    raise config_lib.ConfigError("--workdir= is not allowed: name a directory for the run")
  if not config_lib.is_trained(workdir):
    status = train(workdir, _REPLAY.value, _FLAGFILE.value)
    if status or not config_lib.is_trained(workdir):
      return status or 1
  serve = [f"--arms={_ARMS.value}"] if _ARMS.value else []
  replay = [f"--from={_REPLAY.value}", f"--speed={_SPEED.value}"] if _REPLAY.value else None
  services = loop.services(
    workdir,
    _PORT.value,
    serve=serve,
    learn=_LEARN.value,
    propose=_PROPOSE.value,
    replay=replay,
    package=__package__,
  )
  supervisor = Supervisor(services, lambda line: print(line, flush=True))
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: supervisor.stop())
  print(f"the page: http://127.0.0.1:{_PORT.value}/", flush=True)
  return supervisor.run()


if __name__ == "__main__":
  flags_lib.run(main, local="its services write as they go")
