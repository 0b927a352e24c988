"""The Beam pipeline gives the neighbours of `fit_swing`, to the bit; it needs the extra `beam`."""

import dataclasses

import numpy as np
import pytest

from gr4ad_jax.config import DataConfig, SidConfig
from gr4ad_jax.data.prepare import load_dataset, prepared_folders
from gr4ad_jax.sid import swing_beam, tokenizer
from tests import tiny

pytest.importorskip("apache_beam")
pytest.importorskip("tensorflow_datasets")

SETTINGS = {
  "as it is": {},
  "capped": {"swing_visits": 4, "swing_basket": 3},
  "few neighbours": {"swing_neighbors": 3, "swing_support": 3, "swing_alpha": 0.0},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("log")
  tiny.write_log(folder, users=12, visits=8)
  return DataConfig(
    dataset="ad_log", ads_path=f"{folder}/ads.csv", events_path=f"{folder}/events.csv", data_dir=f"{folder}/data"
  )


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_one_machine(data, tmp_path, monkeypatch, name):
  monkeypatch.setattr(swing_beam, "_USERS", 5)
  config = dataclasses.replace(SidConfig(), **SETTINGS[name])
  dataset = load_dataset(data)
  expected = tokenizer.co_occurrence(dataset.events, len(dataset.ads), config, 3)
  found = swing_beam.run(prepared_folders(data), config, 3, str(tmp_path / "parts"))
  assert (expected.ads_NK >= 0).any()
  np.testing.assert_array_equal(found.ads_NK, expected.ads_NK)
  np.testing.assert_array_equal(found.similarity_NK, expected.similarity_NK)
