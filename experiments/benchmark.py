"""Measures speed on this machine; each figure beside its counterpart, interleaved.

  python -m experiments.benchmark --suite=train --workdir=runs/online_retail --out=train.json
  python -m experiments.benchmark --suite=step --preset=0.16b --batch_size=1024 --remat=dots
  python -m experiments.benchmark --suite=roofline --preset=0.16b --batch_size=1024 --device=h100
  python -m experiments.benchmark --suite=kernels --preset=0.16b --batch_size=1024
  python -m experiments.benchmark --suite=decode --peer --out=decode.json
  python -m experiments.benchmark --suite=objectives
  python -m experiments.benchmark --suite=throughput --preset=0.16b --beams=128-256-512
  python -m experiments.benchmark --suite=index --out=index.json
  python -m experiments.benchmark --suite=swing --out=swing.json
  python -m experiments.benchmark --suite=prepare --events=5000000 --ads=200000 --out=prepare.json
  python -m experiments.benchmark --suite=serve --workdir=runs/online_retail --out=serve.json
  python -m experiments.benchmark --suite=events --users=1000000 --out=events.json
  python -m experiments.benchmark --suite=live --workdir=runs/online_retail --minutes=1
  python -m experiments.benchmark --suite=kmeans --ads=1000000 --repetitions=3 --out=kmeans.json
  XLA_FLAGS=--xla_force_host_platform_device_count=8
  python -m experiments.benchmark --suite=table --ads=50000000

train: the data path against the train step, and the step's rate against plain jnp.dot on the same
  shapes.
step: time, memory and utilisation of the train step of any size, on any mesh; random weights and
  made-up requests.
roofline: the least time that a step and searches take on an accelerator that is not here: each
  product by the larger of its arithmetic and its bytes, what is written beside them, and with
  --compile, for a TPU, what XLA moves. Nothing is run.
kernels: the fused cross-attention on this device against the products that it stands for: whether
  it computes the same, and the time of both.
decode: LazyAR with progressive widths against an autoregressive search and, with --peer, against a
  T5 of transformers; an ablation; the share of the matmul peak. The model has random weights.
objectives: RSPO against S-DPO on lists of 512 candidates, alone and in a training step; memory.
throughput: requests a second of one search of any size, and the most within --target_ms; random
  weights.
index: size, changes and merges of the real-time index at 10 thousand to 10 million ads, and what it
  costs a search.
table: a table of ads cut by rows over all devices: training steps, and what each device holds in
  them.
swing: Swing over 100 million made-up events of a million ads: time and peak memory; what its caps
  change.
prepare: examples of a made-up log, 500 steps of a small run on them, and its evaluation by 10,000
  users: time, bytes, and the memory of each process, from outside.
serve: a server under steady load, at three times its capacity, and after, with traffic-aware beams
  on and off.
events: appends to --stream (an empty one; left out: a file that goes again) and following them,
  without HTTP; made-up users of 50 events each on disk, in memory and at a start.
live: from an event to its effect over HTTP, at 500 events/s in batches of 50 beside 50
  recommendations/s, --minutes without a learner and --minutes beside one; with --stream=redis://…
  (an empty one) events are posted to one server and another is asked.
kmeans: balanced k-means against faiss-cpu's, which is not balanced, --repetitions iterations of
  either in turn, 61 ads or more a cluster; needs the extra 'peer'; tells of each iteration.
"""

import signal
import sys

from absl import flags

from gr4ad_jax.accelerators import kernels, roofline
from gr4ad_jax.benchmarks import (
  decode,
  events,
  index,
  kmeans,
  objectives,
  preparing,
  step,
  swing,
  table,
  throughput,
  training,
)
from gr4ad_jax.evaluation import report_tables
from gr4ad_jax.load import live_load, serve_load
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache

from . import flags as flags_lib
from .progress import RoundProgress, tell

_SUITES = [
  "train",
  "step",
  "roofline",
  "kernels",
  "decode",
  "objectives",
  "throughput",
  "index",
  "prepare",
  "serve",
  "table",
  "kmeans",
  "swing",
  "events",
  "live",
]
_SUITE = flags.DEFINE_enum("suite", "train", _SUITES, "What to measure.")
_OUT = flags.DEFINE_string("out", "", "JSON file for the figures; empty: they are only printed.")
_REPETITIONS = flags.DEFINE_integer(
  "repetitions", 15, "Interleaved measurements of each figure.", lower_bound=1
)
_PEER = flags.DEFINE_boolean("peer", False, "decode: the T5 peer too; needs the extra 'peer'.")
_ADS = flags.DEFINE_list(
  "ads",
  [],
  "Ads of the made-up catalogue. throughput, roofline, table, kmeans, swing, prepare: one number, "
  "1000000 if empty. index: one or more, 10000,100000,1000000,10000000 if empty.",
)
_EVENTS = flags.DEFINE_integer(
  "events", 100_000_000, "swing, prepare: events of the made-up log.", lower_bound=1
)
_USERS = flags.DEFINE_integer("users", 100_000, "events: made-up users.", lower_bound=1)
_BATCHES = flags.DEFINE_list(
  "batches", ["1", "8"], "throughput, roofline: requests searched at once."
)
_DEVICE = flags.DEFINE_enum("device", "h100", list(roofline.DEVICES), "roofline: whose roof.")
_COMPILE = flags.DEFINE_boolean(
  "compile",
  False,
  "roofline: compile for a TPU ahead of time, too; minutes at the large presets. Needs the extra "
  "'roofline'.",
)
_MINUTES = flags.DEFINE_float(
  "minutes", 10.0, "serve: minutes of steady load; live: of each load.", lower_bound=0.05
)


def _numbers(name: str, given) -> tuple[int, ...]:
  """Sizes of a flag. Raises ConfigError."""
  return flags_lib.whole_numbers(name, given, 1, "at least 1")


def _binaries(*names: str) -> dict[str, tuple[str, ...]]:
  """The commands that run some of these binaries, by name."""
  return {name: (sys.executable, "-m", f"{__package__}.{name}") for name in names}


def _live() -> int:
  """Prints the figures of a run's servers under events and recommendations."""
  config = flags_lib.config_from_workdir()
  parts = _binaries("serve", "learn")
  minutes = _MINUTES.value
  found = live_load.run_suite(
    config.workdir, 60 * minutes, config.serving.stream, _OUT.value, told=tell, **parts
  )
  print(live_load.in_words(found))
  return 0


def main(argv):
  """Prints the figures of a suite."""
  del argv
  # Raised like Ctrl-C, so that a suite ends the server and the learner that it has started.
  signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
  enable_compilation_cache()
  repetitions = _REPETITIONS.value
  config = flags_lib.config_from_flags
  if _SUITE.value == "serve":  # writes its figures, and a chart, itself
    workdir = flags_lib.config_from_workdir().workdir
    server = (sys.executable, "-m", f"{__package__}.serve")
    found = serve_load.run_suite(workdir, _MINUTES.value, _OUT.value, command=server, told=tell)
    print(serve_load.in_words(found))
    return 0
  if _SUITE.value == "live":  # likewise
    return _live()

  def ads() -> int:
    return _numbers("ads", _ADS.value or ["1000000"])[0]

  suite, measure = {
    "train": (training, lambda: training.measure(config(), repetitions)),
    "step": (step, lambda: step.measure(config(), repetitions)),
    "roofline": (
      roofline,
      lambda: roofline.measure(
        config(), _DEVICE.value, _numbers("batches", _BATCHES.value), ads(), _COMPILE.value
      ),
    ),
    "kernels": (kernels, lambda: kernels.measure(config(), repetitions)),
    "decode": (decode, lambda: decode.measure(repetitions, _PEER.value)),
    "objectives": (objectives, lambda: objectives.measure(config(), repetitions)),
    "throughput": (
      throughput,
      lambda: throughput.measure(config(), _numbers("batches", _BATCHES.value), repetitions, ads()),
    ),
    "index": (
      index,
      lambda: index.measure(repetitions, _numbers("ads", _ADS.value or index.SIZES)),
    ),
    "prepare": (
      preparing,
      lambda: preparing.measure(
        _binaries("prepare", "train", "evaluate"), _EVENTS.value, ads(), tell
      ),
    ),
    "table": (table, lambda: table.measure(config(), ads())),
    "kmeans": (kmeans, lambda: kmeans.measure(repetitions, ads(), tell)),
    "swing": (swing, lambda: swing.measure(config(), _EVENTS.value, ads(), RoundProgress())),
    "events": (
      events,
      lambda: events.measure(config().serving.stream, repetitions, _USERS.value, RoundProgress()),
    ),
  }[_SUITE.value]
  figures = measure()
  print(suite.summary(figures))
  if _OUT.value:
    report_tables.write_json(_OUT.value, figures)
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  flags_lib.run(main)
