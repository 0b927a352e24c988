"""Tokenizer and index follow the settings until a run is trained, and stay as they are from then
on.
"""

import csv
import dataclasses
import os
import re

import numpy as np
import pytest

from gr4ad_jax.builders.prepare import load_dataset
from gr4ad_jax.config import Config, ConfigError, DataConfig, SidConfig, TrainConfig
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.requests import inputs
from gr4ad_jax.sid.tokenizer import Tokenizer

SID = SidConfig(codebooks=(4, 3, 6), tower_steps=0, kmeans_iterations=2)


def write(path, rows):
  with open(path, "w", newline="", encoding="utf-8") as file:
    csv.writer(file).writerows(rows)
  return str(path)


@pytest.fixture
def config(tmp_path):
  """24 ads with vectors of their own, 20 users of two visits."""
  rng = np.random.default_rng(0)
  encoder = str(tmp_path / "vectors.npy")
  np.save(encoder, rng.normal(size=(24, 8)))
  ads = [[f"ad{n}", "tea", "shop", 1 + n] for n in range(24)]
  start = 1_700_000_000
  visits = [
    (u, a, start + 3600 * v)
    for u in range(20)
    for v in range(2)
    for a in rng.choice(24, 4, replace=False)
  ]
  return Config(
    workdir=str(tmp_path / "run"),
    data=DataConfig(
      dataset="ad_log",
      data_dir=str(tmp_path / "data"),
      ads_path=write(tmp_path / "ads.csv", [["ad_id", "text", "account_id", "price"], *ads]),
      events_path=write(
        tmp_path / "events.csv",
        [["user_id", "ad_id", "time"], *((f"u{u}", f"ad{a}", t) for u, a, t in visits)],
      ),
    ),
    sid=dataclasses.replace(SID, encoder=encoder),
  )


def of_seed(config, seed):
  return dataclasses.replace(config, training=TrainConfig(seed=seed))


def stored(config):
  return Tokenizer.load(f"{config.workdir}/tokenizer"), SidIndex.load(f"{config.workdir}/index")


@pytest.mark.parametrize(
  ("column", "number"), [("value", 3e38), ("value", np.inf), ("price", 2e18)]
)
def test_money_that_float32_cannot_be_computed_with_is_refused(config, monkeypatch, column, number):
  dataset = load_dataset(config.data)
  if column == "price":
    price_N = dataset.ads.price.copy()
    price_N[[3, 7]] = np.nan, number  # one that is not known is allowed
    dataset = dataclasses.replace(dataset, ads=dataclasses.replace(dataset.ads, price=price_N))
    name = dataset.ads.ad_id[7]
  else:
    value_E = dataset.events.value.copy()
    value_E[5] = number
    dataset = dataclasses.replace(
      dataset, events=dataclasses.replace(dataset.events, value=value_E)
    )
    name = dataset.ads.ad_id[dataset.events.ad[5]]
  monkeypatch.setattr(inputs, "load_dataset", lambda _: dataset)
  refused = re.escape(f"column {column!r}: {number:g}, of ad {str(name)!r}, is not allowed")
  with pytest.raises(DataError, match=refused):
    inputs.prepare_inputs(config)


def test_codes_follow_the_seed_until_a_run_is_trained(config, tmp_path):
  dataset = load_dataset(config.data)
  for seed in (0, 1):
    tokenizer, index = inputs.tokenizer_of(of_seed(config, seed), dataset)
    assert tokenizer.seed == seed
    inputs.save_tokenizer(config, dataset, tokenizer, index)
    kept_tokenizer, kept_index = stored(config)
    assert kept_tokenizer.seed == seed
    np.testing.assert_array_equal(kept_index.codes_NT, index.codes_NT)
  (tmp_path / "run" / "checkpoints" / "10").mkdir(parents=True)
  tokenizer, index = inputs.tokenizer_of(of_seed(config, 2), dataset)
  assert tokenizer.seed == 1
  np.testing.assert_array_equal(index.codes_NT, kept_index.codes_NT)
  inputs.save_tokenizer(config, dataset, dataclasses.replace(tokenizer, seed=2), index)
  assert stored(config)[0].seed == 1


def test_only_a_trained_run_refuses_another_ad_table(config, tmp_path):
  dataset = load_dataset(config.data)
  inputs.save_tokenizer(config, dataset, *inputs.tokenizer_of(config, dataset))
  dearer = dataclasses.replace(
    dataset, ads=dataclasses.replace(dataset.ads, price=2 * dataset.ads.price)
  )
  assert len(inputs.tokenizer_of(config, dearer)[1].codes_NT) == 24
  (tmp_path / "run" / "checkpoints" / "10").mkdir(parents=True)
  with pytest.raises(ConfigError, match="another ad table"):
    inputs.tokenizer_of(config, dearer)


class Crash(BaseException):
  """The process is killed."""


def test_the_index_is_there_only_where_what_it_refers_to_is_whole(config, tmp_path, monkeypatch):
  """A crash before any of the renames: a codes.npz without tokenizer and ads would pass for a
  whole tokenizer.
  """
  dataset, rename = load_dataset(config.data), os.replace
  made, there, whole = inputs.tokenizer_of(config, dataset), [], False
  files = ["tokenizer/tokenizer.npz", "index/ads.npz", "index/codes.npz"]
  for renames in range(50):
    left = iter(range(renames))

    def replace(source, target, left=left):
      if next(left, None) is None:
        raise Crash
      rename(source, target)

    workdir = tmp_path / f"crash{renames}"
    monkeypatch.setattr(os, "replace", replace)
    try:
      inputs.save_tokenizer(dataclasses.replace(config, workdir=str(workdir)), dataset, *made)
      whole = True
    except Crash:
      pass
    there = [name for name in files if (workdir / name).exists()]
    assert files[-1] not in there or there == files, f"after {renames} renames"
    if whole:
      break
  assert there == files and renames >= len(files)
