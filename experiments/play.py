"""Plays the log of a run's data set to a server, from the day on at which the run's knowledge ends.

  python -m experiments.play --workdir=runs/until_december --address=http://127.0.0.1:8080

For every visit a recommendation is asked for, then the visit's events are posted; new ads are put
when they are first heard of. A replay that was stopped goes on where it was, by the workdir's
live/replay.json.
"""

import dataclasses
import datetime
import os
import signal
import threading
import time

from absl import flags

from gr4ad_jax import config as config_lib
from gr4ad_jax.builders.prepare import load_dataset, moment
from gr4ad_jax.live import player

from . import flags as flags_lib
from .progress import duration, tell
from .token_file import read_token

_WORKDIR = flags.DEFINE_string("workdir", "", "The run that is served; it names the data set.")
_ADDRESS = flags.DEFINE_string("address", "http://127.0.0.1:8080", "The server.")
_FROM = flags.DEFINE_string(
  "from", "", "First day that is played, YYYY-MM-DD; empty: the run's --until."
)
_SPEED = flags.DEFINE_float(
  "speed", 0.0, "Seconds of the log a second; 0: as fast as the server answers.", lower_bound=0
)
_K = flags.DEFINE_integer("k", 10, "Ads that are asked for.", lower_bound=1)
_TOKEN_FILE = flags.DEFINE_string("token_file", "", "File with the server's bearer token.")
REPLAY = os.path.join("live", "replay.json")  # of a workdir
_TELL_SECONDS = 10.0


def first_moment(config: config_lib.Config, day: str) -> int:
  """Unix seconds of the first day to play.

  Raises:
    ConfigError: what is no day, or one that the run has learned from.
  """
  day = day or config.data.until
  if not day:
    raise config_lib.ConfigError(
      f"--workdir={config.workdir} is not allowed: its run knows the whole log; train one with "
      "--until=<a day>"
    )
  try:
    begin = moment(day)
  except ValueError as error:
    raise config_lib.ConfigError(f"--from={day} is not allowed: a day as 2010-12-01") from error
  if not config.data.until or begin < moment(config.data.until):
    raise config_lib.ConfigError(
      f"--from={day} is not allowed: the run knows the log up to {config.data.until or 'its end'}"
    )
  return begin


class _Telling:
  """A line of progress every few seconds."""

  def __init__(self):
    self._next = 0.0

  def __call__(self, progress: player.Progress) -> None:
    if time.monotonic() < self._next and progress.done < progress.total:
      return
    self._next = time.monotonic() + _TELL_SECONDS
    day = datetime.datetime.fromtimestamp(progress.time, datetime.UTC).date()
    left = duration((progress.total - progress.done) / progress.rate)
    tell(
      f"{day}: {progress.done:,} of {progress.total:,} visits and new ads, "
      f"{progress.rate:.1f} a second, ETA {left}"
    )


def main(argv):
  """Plays what is left of the log."""
  del argv
  stopped = threading.Event()
  signal.signal(signal.SIGTERM, lambda *_: stopped.set())
  if not _WORKDIR.value:
    raise config_lib.ConfigError("--workdir= is not allowed: name the directory of a trained run")
  config = config_lib.load_config(_WORKDIR.value)
  begin = first_moment(config, _FROM.value)
  token = read_token(_TOKEN_FILE.value)
  server = player.Server(_ADDRESS.value, token, stopped.is_set)
  dataset = load_dataset(dataclasses.replace(config.data, until=""))
  place = os.path.join(_WORKDIR.value, REPLAY)
  replay = player.Player(dataset, begin, server, place, _SPEED.value, _K.value, _Telling())
  try:
    replay.play()
  except InterruptedError:
    tell(f"stopped after {replay.done:,} steps; the same command goes on")
  return 0


if __name__ == "__main__":
  flags_lib.run(main, local="a replay notes how far it is")
