"""A made-up log of any size: examples of it, a run on them, its evaluation; time, bytes, and the
memory of each process, watched from outside.
"""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gr4ad_jax.benchmarks.watching import Watched
from gr4ad_jax.data.extras import optional
from gr4ad_jax.data.schema import DAY
from gr4ad_jax.examples.folder import ExampleFolder

_DAYS = 180
_START = 19_500 * DAY
_FILES = 30  # of the log, each of some days
_PER_USER = 50  # events, in the mean
_LARGEST = 200  # events of a visit
_USERS = 10_000  # that are evaluated
# A run that is small in all but the log: what is measured is what grows with the log.
_VECTOR = 16  # numbers of an ad's made-up vector
_RUN = (
  "--tower_steps=0", "--codebooks=64,64,64", "--kmeans_iterations=1", "--width=32", "--heads=1",
  "--layers=2", "--lazy_layers=1", "--targets=4", "--max_steps=500", "--eval_every=0",
  "--eval_requests=64", "--noevaluate", "--save_every=500", "--loader_processes=1",
  "--beams=16,16,16",
)  # fmt: skip


def write_log(folder: str, events: int, ads: int, seed: int = 0) -> tuple[str, str]:
  """Writes a log of heavy tails as Parquet files by days, and its ad table; returns their paths.

  - A visit holds ⌊5 / √(1 - x)⌋ events, x uniform, and at most `_LARGEST`: the mean is about 9.
  - A user has rank r among events // 50 with P(r) ~ 1/r, in the mean of his visits.
  - An ad has rank ⌊n^x⌋ of n. Half of a visit's ads are those of the visit's topic.
  """
  arrow = optional("pyarrow")
  parquet = optional("pyarrow.parquet")
  rng = np.random.default_rng(seed)
  users = max(1, events // _PER_USER)
  topics = max(ads // 100, 1)
  row_of_rank = rng.permutation(ads)
  log = os.path.join(folder, "log")
  os.makedirs(log)
  for number in range(_FILES):
    # Differences of shares that are rounded down: together they are all events.
    left = events * (number + 1) // _FILES - events * number // _FILES
    # A visit holds five events or more, so these visits suffice. What is too much is cut off.
    size = np.minimum(5 / np.sqrt(1 - rng.random(left // 4 + 1)), _LARGEST).astype(np.int64)
    visit = np.repeat(np.arange(len(size)), size)[:left]
    count = len(size)
    # Half of the visits are of anybody, so that most users have some; half go by rank.
    user = np.where(
      rng.random(count) < 0.5, rng.integers(0, users, count), _ranks(rng, count, users) - 1
    )
    span = _DAYS * DAY // _FILES
    time = _START + number * span + rng.integers(0, span, count)
    topic = rng.integers(topics, size=count)[visit]
    within = topic + topics * (_ranks(rng, left, max(ads // topics, 1)) - 1)
    rank = np.where(rng.random(left) < 0.5, within, _ranks(rng, left, ads) - 1)
    kind = rng.choice(3, left, p=(0.8, 0.12, 0.08))
    columns = {
      "user_id": user[visit],
      "ad_id": row_of_rank[rank % ads],
      "time": time[visit] + rng.integers(0, 600, left),
      "behavior": np.array(["click", "cart", "purchase"])[kind],
      "value": np.where(kind == 2, np.round(np.exp(rng.normal(3, 1, left)), 2), 0),
      # A file has no more visits than events, so no two files share a number.
      "request_id": visit + number * (events // _FILES + 1),
    }
    parquet.write_table(arrow.table(columns), os.path.join(log, f"{number:03d}.parquet"))
  table = {
    "ad_id": np.arange(ads),
    "text": [f"ad {number}" for number in range(ads)],
    "account_id": np.arange(ads) % 1000,
    "price": np.round(np.exp(rng.normal(3, 1, ads)), 2),
  }
  path = os.path.join(folder, "ads.parquet")
  parquet.write_table(arrow.table(table), path)
  return path, log


def _ranks(rng: np.random.Generator, count: int, most: int) -> np.ndarray:
  """[count] int64 ranks in [1, most], P(rank r) ~ log(1 + 1/r)."""
  # As x is below 1, the power is below most + 1; but rounding may bring it there.
  return np.minimum((most + 1) ** rng.random(count), most).astype(np.int64)


def measure(
  commands: Mapping[str, Sequence[str]], events: int, ads: int, told: Callable[[str], None],
  more: Sequence[str] = (),
) -> dict:  # fmt: skip
  """Makes a log, and runs `prepare`, `train` (500 steps) and `evaluate` (10,000 users) on it.

  Args:
    commands: that run these parts, by name, in this order: `prepare` first, the others may lack.
    events: of the log.
    ads: of its table.
    told: hears what each part took, once it has ended.
    more: flags of `prepare`.

  Raises:
    RuntimeError: a command failed.
  """
  with tempfile.TemporaryDirectory() as folder:
    path, log = write_log(folder, events, ads)
    vectors = os.path.join(folder, "vectors.npy")
    np.save(vectors, np.random.default_rng(0).normal(size=(ads, _VECTOR)).astype(np.float32))
    out = os.path.join(folder, "examples")
    workdir = f"--workdir={os.path.join(folder, 'run')}"
    on_log = "--dataset=ad_log", f"--ads_path={path}", f"--events_path={log}", f"--out={out}"
    on_examples = "--dataset=ad_log", f"--examples_path={out}", f"--encoder={vectors}"
    flags = {
      "prepare": (*on_log, *more),
      "train": (*on_examples, workdir, *_RUN),
      "evaluate": (workdir, f"--users={_USERS}"),
    }
    parts = {}
    for name, command in commands.items():
      parts[name] = _run([*command, *flags[name]])
      told("\n".join(_in_words(name, parts[name])))
    made = ExampleFolder.open(out)
    shards = made.manifest["shards"]
    return {
      "events": events,
      "ads": ads,
      "users": made.report.users,
      "requests": made.manifest["requests"],
      "cores": os.cpu_count(),
      "load": os.getloadavg()[0],
      "parts": parts,
      "log_bytes": _size(log),
      "bytes": {name: _size(os.path.join(out, name)) for name in sorted(os.listdir(out))},
      "bytes_a_request": sum(shard["bytes"] for shard in shards) / made.manifest["requests"],
    }


def _run(command: Sequence[str]) -> dict:
  """What a command took. Raises RuntimeError where it failed."""
  watched = Watched(command)
  if watched.status:
    raise RuntimeError(f"{' '.join(command)} ended with {watched.status}")
  return {
    "seconds": watched.seconds,
    "cpu_seconds": watched.cpu_seconds,
    "peaks_mib": watched.peaks[:8],
  }


def _size(path: str) -> int:
  """Bytes of a file, or of all files below a folder."""
  if os.path.isfile(path):
    return os.path.getsize(path)
  return sum(
    os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(path) for name in names
  )


def summary(figures: dict) -> str:
  """The figures in words."""
  lines = [
    f"{figures['events']:,} events of {figures['users']:,} users and {figures['ads']:,} ads: "
    f"{figures['requests']:,} requests; {figures['cores']} cores (load {figures['load']:.1f})",
    f"{figures['bytes_a_request']:.0f} bytes of shards a request; the log had "
    f"{figures['log_bytes'] / 1e6:.1f} MB",
  ]
  lines += [f"  {name}: {size / 1e6:.1f} MB" for name, size in figures["bytes"].items()]
  for name, part in figures["parts"].items():
    lines += _in_words(name, part)
  return "\n".join(lines)


def _in_words(name: str, part: dict) -> list[str]:
  """What a part took."""
  peaks = [
    f"  process {number}: peak {peak['rss']:.0f} MiB, {peak['own']:.0f} MiB of them its own"
    for number, peak in enumerate(part["peaks_mib"])
  ]
  return [f"{name}: {part['seconds']:.0f} s, {part['cpu_seconds']:.0f} s of CPU", *peaks]
