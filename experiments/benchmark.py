"""Measures speed on this machine; each figure beside its counterpart, interleaved.

  python -m experiments.benchmark --suite=train --workdir=runs/online_retail --out=train.json
  python -m experiments.benchmark --suite=decode --peer --out=decode.json
  python -m experiments.benchmark --suite=objectives
  python -m experiments.benchmark --suite=throughput --preset=0.16b --beams=128-256-512 --batches=1,8,32
  python -m experiments.benchmark --suite=index --out=index.json
  python -m experiments.benchmark --suite=serve --workdir=runs/online_retail --out=serve.json
  python -m experiments.benchmark --suite=kmeans --ads=1000000 --repetitions=3 --out=kmeans.json

train: the data path against the train step, and the step's rate against plain jnp.dot on the same shapes.
decode: LazyAR with progressive widths against an autoregressive search and, with --peer, against a T5 of
  transformers; an ablation; the share of the matmul peak. The model has random weights.
objectives: RSPO against S-DPO on lists of 512 candidates, alone and in a training step; memory.
throughput: requests a second of one search of any size, and the most within --target_ms; random weights.
index: size, changes and merges of the real-time index at 10 thousand to 10 million ads, and what it costs a search.
serve: a server under steady load, at three times its capacity, and after, with traffic-aware beams on and off.
kmeans: balanced k-means against faiss-cpu's, which is not balanced, --repetitions iterations of either in turn, 61 ads
  or more a cluster; needs the extra 'peer'; --verbosity=0 tells of each iteration.
"""

import logging
import sys

from absl import flags

from experiments import flags as flags_lib
from gr4ad_jax.benchmarks import decode, index, kmeans, objectives, serve_load, throughput, training
from gr4ad_jax.config import ConfigError
from gr4ad_jax.evaluation import tables
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache

_SUITES = ["train", "decode", "objectives", "throughput", "index", "serve", "kmeans"]
_SUITE = flags.DEFINE_enum("suite", "train", _SUITES, "What to measure.")
_OUT = flags.DEFINE_string("out", "", "JSON file for the figures; empty: they are only printed.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 15, "Interleaved measurements of each figure.", lower_bound=1)
_PEER = flags.DEFINE_boolean("peer", False, "decode: the T5 peer too; needs the extra 'peer'.")
_ADS = flags.DEFINE_list("ads", [], "index, throughput, kmeans: ads; empty: 10,000 to 10,000,000; 1,000,000.")
_BATCHES = flags.DEFINE_list("batches", ["1", "8"], "throughput: requests searched at once.")
_MINUTES = flags.DEFINE_float("minutes", 10.0, "serve: minutes of steady load.", lower_bound=0.05)


def _numbers(name: str, given) -> tuple[int, ...]:
  """Whole numbers of a flag, at least 1. Raises ConfigError."""
  if not given or not all(str(number).isdigit() and int(number) for number in given):
    raise ConfigError(f"--{name}={','.join(map(str, given))} is not allowed: whole numbers, at least 1")
  return tuple(map(int, given))


def main(argv):
  """Prints the figures of a suite."""
  del argv
  logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
  enable_compilation_cache()
  if _SUITE.value == "train":
    suite, figures = training, training.measure(flags_lib.config_from_flags(), _REPETITIONS.value)
  elif _SUITE.value == "objectives":
    suite, figures = objectives, objectives.measure(flags_lib.config_from_flags(), _REPETITIONS.value)
  elif _SUITE.value == "decode":
    suite, figures = decode, decode.measure(_REPETITIONS.value, _PEER.value)
  elif _SUITE.value == "throughput":
    config, batches = flags_lib.config_from_flags(), _numbers("batches", _BATCHES.value)
    ads = _numbers("ads", _ADS.value or ["1000000"])[0]
    suite, figures = throughput, throughput.measure(config, batches, _REPETITIONS.value, ads)
  elif _SUITE.value == "index":
    sizes = _numbers("ads", _ADS.value or index.SIZES)
    suite, figures = index, index.measure(_REPETITIONS.value, sizes)
  elif _SUITE.value == "kmeans":
    ads = _numbers("ads", _ADS.value or ["1000000"])[0]
    suite, figures = kmeans, kmeans.measure(_REPETITIONS.value, ads, logging.getLogger())
  else:  # writes its figures, and a chart, itself
    workdir = flags_lib.config_from_workdir().workdir
    print(serve_load.in_words(serve_load.run_suite(workdir, _MINUTES.value, _OUT.value, told=logging.info)))
    return 0
  print(suite.summary(figures))
  if _OUT.value:
    tables.write_json(_OUT.value, figures)
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  flags_lib.run(main)
