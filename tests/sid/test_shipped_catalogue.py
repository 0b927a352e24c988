"""What the default tokenizer makes of the shipped catalogue: collisions, balance, and vectors
that learned.
"""

import pytest

from gr4ad_jax.builders.prepare import load_dataset
from gr4ad_jax.config import DataConfig, SidConfig
from gr4ad_jax.sid import report, tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  pytest.importorskip("wordllama")
  dataset = load_dataset(DataConfig(data_dir=str(tmp_path_factory.mktemp("data"))))
  fitted, codes_NT = tokenizer.fit(dataset.ads, dataset.events, SidConfig(), seed=0)
  return report.quality_report(fitted, dataset.ads, dataset.events, codes_NT, unseen=False)


def test_ads_hardly_share_a_uasid(found):
  assert found["codes"]["hash"]["items_per_sid"] <= 1.02
  assert found["codes"]["probe"]["items_per_sid"] == 1


def test_clusters_of_vector_quantised_levels_are_balanced(found):
  levels = found["codes"]["hash"]["levels"][:-1]
  assert len(levels) == 2 and all(level["largest_over_mean"] <= 1.5 for level in levels)


def test_trained_vectors_find_ads_taken_together(found):
  recall = found["item_recall"]
  assert recall["trained"]["recall@10"] >= 1.5 * recall["content"]["recall@10"]
