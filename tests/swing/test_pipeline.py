"""The Beam pipeline gives the neighbours of `fit_swing`, to the bit; it needs the extra `beam`."""

import dataclasses

import numpy as np
import pytest

from gr4ad_jax.builders.prepare import load_dataset, prepared_folders
from gr4ad_jax.config import DataConfig, SidConfig
from gr4ad_jax.swing import by_config, pipeline
from tests import tiny

pytest.importorskip("apache_beam")
pytest.importorskip("tensorflow_datasets")

SETTINGS = {
  "as it is": {},
  "capped": {"swing_visits": 4, "swing_basket": 3},
  "few neighbours": {"swing_neighbors": 3, "swing_support": 3, "swing_alpha": 0.0},
}


def config_of(folder):
  return DataConfig(
    dataset="ad_log",
    ads_path=f"{folder}/ads.csv",
    events_path=f"{folder}/events.csv",
    data_dir=f"{folder}/data",
  )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tiny.write_log(tmp_path_factory.mktemp("log"), users=12, visits=8)


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_one_machine(folder, tmp_path, monkeypatch, name):
  data = config_of(folder)
  monkeypatch.setattr(pipeline, "_USERS", 5)
  config = dataclasses.replace(SidConfig(), **SETTINGS[name])
  dataset = load_dataset(data)
  expected = by_config.co_occurrence(dataset.events, len(dataset.ads), config, 3)
  found = pipeline.run(prepared_folders(data), config, 3, str(tmp_path / "parts"))
  assert (expected.ads_NK >= 0).any()
  np.testing.assert_array_equal(found.ads_NK, expected.ads_NK)
  np.testing.assert_array_equal(found.similarity_NK, expected.similarity_NK)


def test_ads_of_a_user_count_where_every_visit_holds_one(tmp_path):
  table, events = tiny.rows(users=12, visits=8)
  single = [[*event[:-1], f"visit{row}"] for row, event in enumerate(events)]
  tiny.write_csv(tmp_path / "ads.csv", tiny.AD_HEADER, table)
  tiny.write_csv(tmp_path / "events.csv", tiny.EVENT_HEADER, single)
  data, config = config_of(tmp_path), SidConfig(swing_visits=5)
  dataset = load_dataset(data)
  expected = by_config.co_occurrence(dataset.events, len(dataset.ads), config, 0)
  found = pipeline.run(prepared_folders(data), config, 0, str(tmp_path / "parts"))
  assert (expected.ads_NK >= 0).any()
  np.testing.assert_array_equal(found.ads_NK, expected.ads_NK)
  np.testing.assert_array_equal(found.similarity_NK, expected.similarity_NK)


def test_the_binary_keeps_what_a_tokenizer_takes(folder, tmp_path):
  out = tmp_path / "neighbors.npz"
  done = tiny.run(
    "swing_beam", *tiny.source_flags(folder), f"--out={out}", "--beam_options=--runner=DirectRunner"
  )
  assert (done.status, done.err) == (0, "") and "24 of 24 ads have neighbours" in done.out
  assert [path.name for path in tmp_path.iterdir()] == ["neighbors.npz"]
  dataset = load_dataset(config_of(folder))
  fitted, taken = (
    by_config.co_occurrence(dataset.events, 24, SidConfig(swing_path=path), 0)
    for path in ("", str(out))
  )
  np.testing.assert_array_equal(taken.similarity_NK, fitted.similarity_NK)


@pytest.mark.parametrize(
  ("flag", "words"),
  [
    ("--beam_options=--runner=Nothing", "--beam_options=--runner=Nothing is not allowed"),
    ("--beam_options='", "--beam_options=' is not allowed: No closing quotation"),
    ("--out=absent/neighbors.npz", "absent"),
    ("--swing_path=neighbors.npz", "--swing_path is not allowed"),
  ],
)
def test_mistakes_are_told_in_one_line(folder, tmp_path, monkeypatch, flag, words):
  monkeypatch.chdir(tmp_path)
  done = tiny.run("swing_beam", *tiny.source_flags(folder), flag)
  assert done.status == 2 and done.err.count("\n") == 1 and words in done.err
  assert not list(tmp_path.iterdir())
