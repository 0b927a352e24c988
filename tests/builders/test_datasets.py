"""The named data sets: published figures, and the rules that give them."""

import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gr4ad_jax.builders import prepare
from gr4ad_jax.builders.online_retail import SOURCE
from gr4ad_jax.config import DataConfig
from gr4ad_jax.data.schema import SPLITS, DataError


@pytest.fixture(scope="module")
def retail(tmp_path_factory):
  return prepare.load_dataset(DataConfig(data_dir=str(tmp_path_factory.mktemp("data"))))


def test_online_retail_has_the_figures_of_its_protocol(retail):
  report = retail.report
  assert (report.users, report.ads) == (4907, 3740)
  assert report.events == {"train": 419771, "valid": 51690, "test": 48867}
  assert report.events["train"] + report.events["valid"] == 471461  # all lines before test
  assert report.requests["test"] == report.requests["valid"] == 2513
  assert round(report.events["test"] / report.requests["test"], 1) == 19.4
  assert report.rows == sum(report.events.values()) + report.merged + sum(report.dropped.values())


def test_online_retail_lines_are_unique_and_sum_to_the_file(retail):
  log = retail.events
  assert len(np.unique(log.request.astype(np.int64) * len(retail.ads) + log.ad)) == len(log)
  source = pq.read_table(SOURCE).to_pandas()
  source = source[source.stock_code.isin(retail.ads.ad_id)]
  assert np.isclose(
    log.value.sum(dtype=np.float64), (source.quantity * source.unit_price_gbp.astype(float)).sum()
  )
  assert log.quantity.sum(dtype=np.float64) == source.quantity.sum()
  last = source.groupby("customer_id").invoice_time.max().dt.floor("s")
  test = log.split == SPLITS.index("test")
  customer, first = np.unique(log.user[test], return_index=True)
  gap = (
    last.loc[[int(user) for user in log.user_id[customer]]]
    .to_numpy()
    .astype("datetime64[s]")
    .astype(np.int64)
  )
  assert (gap - log.time[test][first] >= 0).all() and (gap - log.time[test][first] < 600).all()


def test_online_retail_ads(retail):
  ads = retail.ads
  row = ads.ad_id.tolist().index("85123A")
  assert ads.text[row] == "WHITE HANGING HEART T-LIGHT HOLDER"
  assert (ads.account_id[row], ads.category[row]) == ("851", "")
  source = pq.read_table(SOURCE).to_pandas()
  named = (
    source[source.stock_code.isin(ads.ad_id)].groupby(["stock_code", "description"]).invoice_time
  )
  best = named.agg(["size", "max"]).reset_index().sort_values(["stock_code", "size", "max"])
  best = best.groupby("stock_code").description.last()
  assert ads.text.tolist() == [" ".join(best[code].split()) for code in ads.ad_id]
  train = retail.events.split == 0
  own = train & (retail.events.ad == row)
  assert ads.created[row] == retail.events.time[own].min()
  assert np.isclose(
    ads.price[row], np.median(retail.events.value[own] / retail.events.quantity[own]), atol=1e-4
  )
  unit = retail.events.value[train] / retail.events.quantity[train]
  sold = pd.DataFrame(
    {"ad": retail.events.ad[train], "unit": unit, "time": retail.events.time[train]}
  ).groupby("ad")
  np.testing.assert_allclose(ads.price[sold.unit.median().index], sold.unit.median(), atol=1e-4)
  np.testing.assert_array_equal(ads.created[sold.time.min().index], sold.time.min())
  unsold = np.setdiff1d(np.arange(len(ads)), retail.events.ad[train])
  np.testing.assert_array_equal(np.flatnonzero(np.isnan(ads.price)), unsold)
  np.testing.assert_array_equal(np.flatnonzero(ads.created < 0), unsold)


def test_amazon_reviews_hold_out_the_last_two(tmp_path):
  reviews = {"user_id": [1, 1, 1, 2, 2], "item_id": [3, 1, 2, 2, 3], "position": [0, 1, 2, 0, 1]}
  items = {
    "item_id": [1, 2, 3],
    "asin": ["A", "B", "C"],
    "text": ["a", None, "c  c"],
    "attribute_ids": [[5, 7], [], [6]],
  }
  paths = {
    "ads_path": str(tmp_path / "items.parquet"),
    "events_path": str(tmp_path / "interactions.parquet"),
  }
  pq.write_table(pa.table(items), paths["ads_path"])
  pq.write_table(pa.table(reviews), paths["events_path"])
  config = DataConfig(dataset="amazon_reviews", data_dir=str(tmp_path / "data"), **paths)
  dataset = prepare.load_dataset(config)
  assert dataset.behaviors == ("review",)
  assert dataset.ads.text.tolist() == ["a", "", "c c"]
  assert dataset.ads.category.tolist() == ["5 7", "", "6"]
  assert dataset.ads.account_id.tolist() == ["5", "none", "6"]
  assert dataset.ads.ad_id[dataset.events.ad].tolist() == ["3", "1", "2", "2", "3"]
  assert [SPLITS[s] for s in dataset.events.split] == ["train", "valid", "test", "train", "train"]
  assert dataset.events.request.tolist() == [0, 1, 2, 3, 4]
  assert dataset.events.time.tolist() == [0, 86400, 172800, 0, 86400]
  pq.write_table(pa.table(reviews | {"item_id": [3, 1, 9, 2, 3]}), paths["events_path"])
  with pytest.raises(
    DataError, match="interactions.parquet: column 'item_id', row 3: '9' is not in the ad table"
  ):
    prepare.load_dataset(config)


@pytest.mark.skipif(
  "GR4AD_BEAUTY" not in os.environ, reason="GR4AD_BEAUTY names no folder with the Beauty files"
)
def test_amazon_beauty_figures(tmp_path):
  folder = os.environ["GR4AD_BEAUTY"]
  dataset = prepare.load_dataset(
    DataConfig(
      dataset="amazon_reviews",
      data_dir=str(tmp_path),
      ads_path=os.path.join(folder, "items.parquet"),
      events_path=os.path.join(folder, "interactions.parquet"),
    )
  )
  assert (dataset.report.users, dataset.report.ads) == (22363, 12101)
  assert dataset.report.events == {"train": 198502 - 2 * 22363, "valid": 22363, "test": 22363}
