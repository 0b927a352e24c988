"""The reward system: lists of candidates for requests that were answered, with what each is worth.

  python -m experiments.propose --workdir=runs/online_retail

It reads the topic `impressions` of the server's stream, writes the topic `lists`, and goes on where
it was stopped. The run's reward model is fitted first where there is none, and again whenever
--refit_events have come. Metrics lie in live/proposer of the run's directory.
"""

import os
import signal
import sys
import threading

from absl import flags

from gr4ad_jax.answering.living import live_folder, stream_url
from gr4ad_jax.learning.in_use import ParamsInUse
from gr4ad_jax.live import proposer as proposer_lib
from gr4ad_jax.live.proposer import Cycle, Proposer, Terms
from gr4ad_jax.live.refits import Refits
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache
from gr4ad_jax.requests import inputs as inputs_lib
from gr4ad_jax.streams.opening import open_stream
from gr4ad_jax.training import loop
from gr4ad_jax.training.writers import open_writers

from . import flags as flags_lib
from .progress import RoundProgress, show_progress, tell

_SAMPLE = flags.DEFINE_integer(
  "sample", 64, "Answers that get a list, of each --part.", lower_bound=1
)
_PART = flags.DEFINE_integer("part", 256, "Answers that are looked at together.", lower_bound=1)
_HOURS = flags.DEFINE_float(
  "hours", 1.0, "Hours within which a visit counts as following an answer.", lower_bound=1e-3
)
_REFIT = flags.DEFINE_integer(
  "refit_events", 50_000, "Fit the reward model again after so many events; 0: never.",
  lower_bound=0,
)  # fmt: skip
_ONCE = flags.DEFINE_boolean("once", False, "End when the stream holds no more.")
_LOOK = 1.0  # seconds between two looks at a stream that holds no more


def told(cycle: Cycle, lag: int) -> str:
  """A line about a part of the topic."""
  line = f"{cycle.lists} lists, {cycle.unfollowed} answers that nothing followed, {lag:,} to go"
  measured = cycle.calibration
  if "ratio" in measured:
    line += (
      f"; of {measured['pairs']:.0f} ads shown {measured['taken']:.0f} were taken, "
      f"{measured['expected']:.1f} expected"
    )
  return line


def main(argv):
  """Proposes until it is stopped."""
  del argv
  config = flags_lib.config_from_workdir()
  enable_compilation_cache()
  stopped = threading.Event()
  signal.signal(signal.SIGTERM, lambda *_: stopped.set())
  inputs = inputs_lib.prepare_inputs(config, config.workdir)
  inputs_lib.check_same_log(config, inputs.dataset)
  folder = os.path.join(config.workdir, proposer_lib.FOLDER)
  refits = Refits(config, folder, _REFIT.value)
  terms = Terms(_SAMPLE.value, _PART.value, _HOURS.value, config.training.seed)
  stream = open_stream(stream_url(config, live_folder(config)))
  writer = open_writers(folder, stream.position(proposer_lib.IMPRESSIONS, proposer_lib.CONSUMER))
  try:
    proposer = Proposer(config, inputs, stream, terms)
    return propose(proposer, refits, ParamsInUse(config, proposer.model), writer, stopped)
  except loop.DivergedError as error:
    print(f"error: the reward model: {error}", file=sys.stderr)
    return 1
  finally:
    writer.close()
    stream.close()


def propose(proposer: Proposer, refits: Refits, params: ParamsInUse, writer, stopped) -> int:
  """Takes part after part, and fits the reward model when it is due."""
  while not stopped.is_set():
    proposer.read_log()
    if refits.due(len(proposer.log)):
      tell(f"fitting the reward model, with {len(proposer.log):,} events of the stream")
      whole = refits.fit(proposer.log.inputs(), len(proposer.log), show_progress, RoundProgress())
      if not whole:
        return 0
    cycle = proposer.propose(params.latest(), refits.newest()[0])
    if cycle is not None:
      scalars = {f"reward/{name}": value for name, value in cycle.calibration.items()}
      scalars |= {"lists": float(cycle.lists), "lag": float(proposer.lag)}
      writer.write(cycle.offset, scalars)
      tell(told(cycle, proposer.lag))
    elif _ONCE.value:
      return 0
    else:
      stopped.wait(_LOOK)
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  flags_lib.run(main, local="the reward system writes as it goes")
