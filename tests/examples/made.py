"""A log in files by day, the examples made of it, and the same in memory."""

import csv
import dataclasses
import random
import types

import numpy as np

from gr4ad_jax.builders.ad_log import AdLog
from gr4ad_jax.config import Config, DataConfig
from gr4ad_jax.features.lines import build_lines
from gr4ad_jax.features.neighbors import NeighborFolds
from gr4ad_jax.requests.inputs import Inputs, learned_requests

ADS = 30
DAY = 86_400
START = 19_700 * DAY
HEADER = ("user_id", "ad_id", "time", "behavior", "value", "quantity", "request_id")
CODES = np.random.default_rng(0).integers(0, 4, (ADS, 3)).astype(np.int32)


def rows(users=24, seed=0, days=12):
  """Events in order of time: late ones, visits that go on in the next day, ads that nobody knows,
  money that no sum holds exactly, purchases that are taken back.
  """
  rng = random.Random(seed)
  found = []
  for user in range(users):
    for visit in range(rng.randint(1, 6)):
      begin = START + rng.randrange(days * DAY)
      for _ in range(rng.randint(1, 6)):
        late = rng.choice([0, 0, 0, 40, 2 * DAY])
        ad = "gone" if rng.random() < 0.05 else f"ad{min(ADS - 1, int(rng.paretovariate(0.7)))}"
        kind = rng.choice(("click", "cart", "purchase"))
        value = round(10 ** rng.uniform(-3, 6), 3) if kind == "purchase" else 0
        value *= rng.choice((1, 1, 1, 1, -1))
        moment = begin + late + rng.randrange(100)
        name = f"{user}/{visit}"
        found.append((f"u{user:02d}", ad, moment, kind, value, rng.randint(1, 4), name))
  return sorted(found, key=lambda row: row[2])


def write_files(folder, events, cuts, first=0):
  """Writes events as CSV files, cut at moments."""
  folder.mkdir(exist_ok=True)
  edges = [0, *cuts, 1 << 40]
  for number, (begin, end) in enumerate(zip(edges[:-1], edges[1:], strict=True), first):
    with open(folder / f"day{number:02d}.csv", "w", newline="", encoding="utf-8") as file:
      some = [row for row in events if begin <= row[2] < end]
      csv.writer(file).writerows([HEADER, *some])


def write_ads(path):
  """Writes the ad table."""
  with open(path, "w", newline="", encoding="utf-8") as file:
    table = [(f"ad{n}", f"text {n}", f"shop{n % 3}", n + 0.1 if n % 7 else "") for n in range(ADS)]
    csv.writer(file).writerows([("ad_id", "text", "account_id", "price"), *table])


def config_of(folder, **data):
  """Settings for a log in `folder`/log and ads in `folder`/ads.csv."""
  about = {
    "dataset": "ad_log", "ads_path": str(folder / "ads.csv"), "events_path": str(folder / "log"),
    "on_unknown_ad": "drop", "history_slots": 5, "neighbor_slots": 3, "rising_slots": 2,
    "neighbor_folds": 3, "targets": 3, "attribution_days": 1.0,
  }  # fmt: skip
  return Config(data=DataConfig(**about | data))


def in_memory(config, codes_NT=CODES):
  """The inputs of a run on the log, as `prepare_inputs` makes them."""
  dataset = AdLog.read(config.data)
  dataset = dataclasses.replace(dataset, attribution_days=config.data.attribution_days)
  lines = build_lines(dataset.events, len(dataset.ads), config.data.attribution_days)
  learned = np.isin(lines.request, learned_requests(lines, config))
  request_L = lines.request[learned]
  about = request_L, lines.request_user[request_L], lines.ad[learned], len(dataset.ads)
  neighbors = NeighborFolds.fit(*about, config.data.neighbor_folds)
  index = types.SimpleNamespace(codes_NT=codes_NT)
  return Inputs(dataset, None, index, lines, neighbors, None)
