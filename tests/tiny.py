"""An ad log of ten users as a CSV pair, settings that train on it in seconds, and the binaries
run in this process.
"""

import contextlib
import csv
import dataclasses
import io
import pathlib
import random
import runpy
import socket
import sys

from absl import app, flags

from gr4ad_jax.config import Config, with_knobs
from gr4ad_jax.zoo import registry

WORDS = (
  "red",
  "blue",
  "green",
  "tea",
  "cup",
  "mug",
  "lamp",
  "candle",
  "ribbon",
  "bag",
  "box",
  "heart",
)
AD_HEADER = ("ad_id", "text", "account_id", "price")
EVENT_HEADER = ("user_id", "ad_id", "time", "behavior", "value", "request_id")
SETTINGS = (
  "--codebooks=4,3,6", "--tower_steps=0", "--kmeans_iterations=2", "--width=16", "--heads=2",
  "--kv_groups=2", "--layers=2", "--lazy_layers=1", "--beams=8,8,8", "--batch_size=8",
  "--history_slots=8", "--neighbor_slots=4", "--rising_slots=4", "--targets=4", "--warmup_steps=2",
  "--log_every=2",
)  # fmt: skip


def settings(model: str, *more: str) -> tuple[str, ...]:
  """--model, and of `SETTINGS` and other flags those that the model reads."""
  unread = registry.unread(with_knobs(Config(), {"model": model}))
  flags_given = (*SETTINGS, *more)
  read = [flag for flag in flags_given if flag[2:].partition("=")[0] not in unread]
  return (f"--model={model}", *read)


@dataclasses.dataclass(frozen=True)
class Done:
  """How a binary ended: exit status, standard output, standard error."""

  status: int
  out: str
  err: str


def rows(
  users: int = 10, ads: int = 24, visits: int = 5, seed: int = 0
) -> tuple[list[list], list[list]]:
  """Rows of the ad table and of the event log, headers left out."""
  rng = random.Random(seed)
  table = [
    [f"ad{a:02d}", " ".join(rng.sample(WORDS, 3)), f"shop{a % 4}", 1 + a / 2] for a in range(ads)
  ]
  events = [
    [
      f"u{u}",
      f"ad{a:02d}",
      f"2024-01-{1 + 3 * v:02d}T0{u % 10}:00:00",
      kind,
      round(20 * rng.random(), 2),
      f"{u}-{v}",
    ]
    for u in range(users)
    for v in range(visits)
    for a in rng.sample(range(ads), min(ads, rng.randint(2, 5)))
    for kind in [rng.choice(("click", "cart", "purchase"))]
  ]
  return table, events


def write_csv(path: pathlib.Path, header, table) -> None:
  """Writes a CSV file."""
  with open(path, "w", newline="", encoding="utf-8") as file:
    csv.writer(file).writerows([header, *table])


def write_log(folder: pathlib.Path, **size: int) -> pathlib.Path:
  """Writes ads.csv and events.csv (see `rows`) into a folder, and returns it."""
  folder.mkdir(parents=True, exist_ok=True)
  table, events = rows(**size)
  write_csv(folder / "ads.csv", AD_HEADER, table)
  write_csv(folder / "events.csv", EVENT_HEADER, events)
  return folder


def source_flags(folder: pathlib.Path) -> list[str]:
  """The flags that name a folder's CSV pair; prepared data go beside it."""
  return ["--dataset=ad_log", f"--ads_path={folder}/ads.csv", f"--events_path={folder}/events.csv",
          f"--data_dir={folder}/data"]  # fmt: skip


def run(binary: str, *arguments: str) -> Done:
  """Runs experiments/<binary>.py as `python -m` would, in this process: JAX is imported once."""
  app.define_help_flags()
  argv = sys.argv
  out, err = io.StringIO(), io.StringIO()
  status = None
  sys.argv = [binary, *map(str, arguments)]
  try:
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      runpy.run_module(f"experiments.{binary}", run_name="__main__")
  except SystemExit as end:
    status = end.code or 0
  finally:
    sys.argv = argv
    flags.FLAGS.unparse_flags()
    for name in list(flags.FLAGS):
      if (
        flags.FLAGS.find_module_defining_flag(name) == binary
      ):  # absl's name of the main module: argv[0]
        delattr(flags.FLAGS, name)
  return Done(status, out.getvalue(), err.getvalue())


def assert_settings_told(metrics: dict) -> None:
  """That metrics of `small_run`, or of a run like it, name the settings that make a difference."""
  expected = {
    "seed": 0,
    "fit_splits": "train",
    "beams": [8, 8, 8],
    "order": "likelihood",
    "lazy_layers": 0,
    "copy": "context",
    "history_bias": False,
  }
  assert expected.items() <= metrics["settings"].items()
  assert not {"ads_path", "port"} & set(metrics["settings"])


def free_port() -> int:
  """A port that nobody listens on now."""
  with socket.create_server(("127.0.0.1", 0)) as found:
    return found.getsockname()[1]
