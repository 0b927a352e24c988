"""Compares the arms of a server by what its streams tell.

  python -m experiments.compare_arms --stream=sqlite:runs/live/stream.sqlite \
    --arms=frozen=0.5,learning=0.5

May be looked at as often as one likes: the intervals hold together. --days, --alpha and --aim are
to be fixed before the first look. With --workdir what users brought in the run's log counts as
known before.
"""

import datetime
import os

import numpy as np
from absl import flags

from gr4ad_jax import config as config_lib
from gr4ad_jax import files
from gr4ad_jax.arms import arms_file, report
from gr4ad_jax.arms.assignment import parse_shares
from gr4ad_jax.arms.journal import Journal
from gr4ad_jax.builders.prepare import load_dataset
from gr4ad_jax.streams.opening import open_stream

from . import flags as flags_lib

_STREAM = flags.DEFINE_string("stream", "", "The streams that the servers write: sqlite:<path>.")
_ARMS = flags.DEFINE_string(
  "arms", "", "The servers' file of arms, .json; or arms and their shares: frozen=0.5,learning=0.5."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", "", "A run whose log tells what users brought before; empty: the streams alone."
)
_DAYS = flags.DEFINE_float(
  "days", 7.0, "Days of a user that count, from the first request on.", lower_bound=1e-3
)
_HOURS = flags.DEFINE_float(
  "hours", 24.0, "Hours within which an ad counts as what followed a request.", lower_bound=1e-3
)
_K = flags.DEFINE_integer("k", 10, "Places of a list whose recall is told.", lower_bound=1)
_ALPHA = flags.DEFINE_float(
  "alpha", 0.05, "Chance that any interval is ever wrong.", lower_bound=1e-9, upper_bound=0.5
)
_AIM = flags.DEFINE_float(
  "aim", 10_000, "Users that the comparison aims at; its interval is narrowest there.",
  lower_bound=1,
)  # fmt: skip
_OUT = flags.DEFINE_string("out", "", "Where to write the report as JSON; empty: nowhere.")


def brought_before(workdir: str) -> dict[str, float]:
  """User -> money in the log that a run was trained on."""
  events = load_dataset(config_lib.load_config(workdir).data).events
  sums = np.bincount(events.user, events.value, minlength=len(events.user_id))
  return dict(zip(map(str, events.user_id), sums.tolist(), strict=True))


def main(argv):
  """Reads the streams, and prints the table."""
  del argv
  for flag in (_STREAM, _ARMS):
    if not flag.value:
      raise config_lib.ConfigError(f"--{flag.name}= is not allowed: it must be named")
  text = _ARMS.value
  shares = arms_file.load(text).shares if text.endswith(".json") else parse_shares(text)
  path = _STREAM.value.removeprefix("sqlite:")
  if path != _STREAM.value and not os.path.isfile(path):  # opening it would make one
    raise FileNotFoundError(f"{path}: there is no such stream")
  before = brought_before(_WORKDIR.value) if _WORKDIR.value else {}
  stream = open_stream(_STREAM.value)
  try:
    journal = Journal.read(stream)
  finally:
    stream.close()
  terms = report.Terms(shares, _DAYS.value, _HOURS.value, _K.value, _ALPHA.value, _AIM.value)
  found = report.report(journal, terms, before)
  end = datetime.datetime.fromtimestamp(journal.end, datetime.UTC)
  print(f"Up to {end:%Y-%m-%d %H:%M} UTC.\n{report.text(found)}")
  if _OUT.value:
    files.write_json(_OUT.value, found)


if __name__ == "__main__":
  flags_lib.run(main, local="its log alone is read")
