"""`complete_journey`, on a small made-up folder in the layout of the package's tables."""

import dataclasses
import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gr4ad_jax.builders import prepare
from gr4ad_jax.builders.registry import BUILDERS
from gr4ad_jax.config import DataConfig
from gr4ad_jax.data.schema import SPLITS, DataError
from gr4ad_jax.live import player

_DAY0 = datetime.datetime(2017, 1, 1, 12)


def _product(number: int, **more) -> dict:
  return {
    "product_id": number,
    "manufacturer_id": number % 3,
    "department": "GROCERY",
    "brand": "National",
    "product_category": "FRZN ICE",
    "product_type": "ICE - CRUSHED/CUBED",
    "package_size": "22 LB",
  } | more


def _line(
  household: int, basket: int, product: int, quantity: int = 1, value: float = 2.0, store: int = 7
) -> dict:
  return {
    "household_id": household,
    "store_id": store,
    "basket_id": 31_000_000_000 + basket,
    "product_id": product,
    "quantity": quantity,
    "sales_value": value,
    "week": 1 + basket // 7,
    "transaction_timestamp": _DAY0 + datetime.timedelta(days=basket),
  }


def _redemption(household: int, coupon: int, campaign: int, day: int) -> dict:
  date = _DAY0.replace(hour=0) + datetime.timedelta(days=day)
  return {
    "household_id": household,
    "coupon_upc": coupon,
    "campaign_id": campaign,
    "redemption_date": date,
  }


def _tables() -> dict[str, list[dict]]:
  """Products 10 and 12 with five lines or more; 11 has four, 99 is in no table."""
  lines = [_line(1, basket, product) for basket in range(4) for product in (12, 10, 11, 99)]
  lines += [_line(2, 9, product, 2, 5.0) for product in (12, 10, 99)]
  # Of nothing paid, or nothing taken: no line, and it counts for no product.
  lines += [_line(2, 9, 11, 1, 0.0), _line(2, 9, 11, 0, 1.0), _line(3, 8, 11, 0, 1.0)]
  products = [
    _product(12, brand="Private"),
    _product(11),
    _product(10, product_category=None, product_type=None, package_size=None),
  ]
  coupons = [
    {"coupon_upc": 500, "campaign_id": 1, "product_id": 12},
    {"coupon_upc": 500, "campaign_id": 1, "product_id": 10},
    {"coupon_upc": 500, "campaign_id": 2, "product_id": 11},
    {"coupon_upc": 600, "campaign_id": 1, "product_id": 10},
  ]
  redemptions = [_redemption(1, 500, 1, 2), _redemption(2, 600, 1, 3)]
  return {
    "transactions": lines,
    "products": products,
    "coupons": coupons,
    "coupon_redemptions": redemptions,
  }


def _promotion(product: int, store: int, week: int, display: str, mailer: str) -> dict:
  return {
    "product_id": product,
    "store_id": store,
    "week": week,
    "display_location": display,
    "mailer_location": mailer,
  }


def _written(folder, **changed: list[dict]) -> DataConfig:
  for name, rows in (_tables() | changed).items():
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
  return DataConfig(
    dataset="complete_journey", journey_path=str(folder), data_dir=str(folder / "prepared")
  )


def test_baskets_become_visits_and_products_ads(tmp_path):
  dataset = prepare.load_dataset(_written(tmp_path))
  events = dataset.events
  assert dataset.behaviors == ("purchase",)
  assert dataset.ads.ad_id.tolist() == ["12", "10"]
  assert dataset.ads.text.tolist() == ["ICE - CRUSHED/CUBED FRZN ICE 22 LB Private", "National"]
  assert dataset.ads.account_id.tolist() == ["0", "1"]
  assert dataset.ads.category.tolist() == ["FRZN ICE", "GROCERY"]
  assert events.user_id.tolist() == ["1", "2"] and events.user.tolist() == [0] * 8 + [1] * 2
  assert events.request.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
  # Of four baskets the last is test, the one before valid; of one, train.
  split = [SPLITS[number] for number in events.split]
  assert split == ["train"] * 4 + ["valid"] * 2 + ["test"] * 2 + ["train"] * 2
  assert events.value.tolist() == [2.0] * 8 + [5.0] * 2
  assert events.quantity.tolist() == [1.0] * 8 + [2.0] * 2
  first = int(_DAY0.replace(tzinfo=datetime.UTC).timestamp())
  assert events.time.tolist() == [first + 86_400 * day for day in (0, 0, 1, 1, 2, 2, 3, 3, 9, 9)]
  # 2.0, 2.0 and 5.0 / 2 a unit in train.
  np.testing.assert_allclose(dataset.ads.price, [2.0, 2.0])
  assert dataset.ads.created.tolist() == [first, first]
  assert dataset.report.dropped == {
    "quantity or value of 0": 3,
    "product of fewer than 5 lines": 4,
    "product not in the product table": 5,
  }
  assert dataset.report.rows == 22 and len(events) == 10
  # Household 1 redeemed a coupon for both products on the day of basket 2, household 2 one of a
  # day without a basket.
  assert dataset.report.noted == {"that a redeemed coupon covers": 2}


def test_until_prices_and_dates_are_those_of_the_sales_of_then(tmp_path):
  lines = [_line(1, basket, product=12) for basket in range(4)]
  lines += [_line(1, basket, product=10) for basket in (2, 3)]  # of valid and test
  later = [(user, 7 + user, product) for user in (2, 3, 4) for product in (12, 10)]
  lines += [_line(*visit, value=8.0) for visit in later]
  config = _written(tmp_path, transactions=lines)
  whole = prepare.load_dataset(config)
  day = _DAY0.replace(tzinfo=datetime.UTC).timestamp()
  assert whole.ads.price.tolist() == [8.0, 8.0]  # of 2, 2, 8, 8, 8 and of 8, 8, 8
  assert whole.ads.created.tolist() == [day, day + 9 * 86_400]
  known = prepare.load_dataset(dataclasses.replace(config, until="2017-01-06"))
  assert known.ads.ad_id.tolist() == ["12", "10"]
  np.testing.assert_array_equal(known.ads.price, [2.0, np.nan])
  assert known.ads.created.tolist() == [day, -1]
  # Who hears of ads one by one hears the price of the first sale.
  assert player.as_put(whole).ads.price.tolist() == [2.0, 2.0]
  assert player.ad_fields(player.as_put(whole), 1)["price"] == 2.0


def test_lines_of_one_basket_and_product_are_one(tmp_path):
  lines = _tables()["transactions"] + [_line(1, 0, 10, 3, 4.5)]
  dataset = prepare.load_dataset(_written(tmp_path, transactions=lines))
  first = (dataset.events.request == 0) & (dataset.ads.ad_id[dataset.events.ad] == "10")
  assert dataset.events.value[first].tolist() == [6.5]
  assert dataset.events.quantity[first].tolist() == [4.0]
  assert dataset.report.merged == 1


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"transactions": [_line(1, 0, 10)] * 4}, "transactions.parquet: no line is left of 4 rows"),
    (
      {"products": [_product(10), _product(12), _product(10)]},
      "products.parquet: column 'product_id', row 3: '10' is already the ad of row 1",
    ),
    (
      {"coupons": [{"coupon_upc": 5, "campaign_id": 1, "product_id": "ten"}]},
      "coupons.parquet: column 'product_id' holds string or empty cells: whole numbers are needed",
    ),
    (
      {"transactions": [_line("ann", basket, 10) for basket in range(5)]},
      "column 'household_id': whole numbers are needed",
    ),
    (
      {"transactions": [{"household_id": 1}]},
      "transactions.parquet: column 'basket_id' is missing",
    ),
  ],
)
def test_bad_tables_are_named(tmp_path, changed, message):
  with pytest.raises(DataError, match=message):
    prepare.load_dataset(_written(tmp_path, **changed))


def test_a_missing_table_is_named(tmp_path):
  config = _written(tmp_path)
  (tmp_path / "products.parquet").unlink()
  with pytest.raises(DataError, match=r"products.parquet: no such file .journey_path."):
    BUILDERS["complete_journey"].fingerprint(config)


def test_displays_and_mailers_are_those_of_the_users_store(tmp_path):
  lines = _tables()["transactions"]
  # What household 1 buys last, and elsewhere, says nothing of where it had shopped before.
  lines += [_line(1, 3, 12, store=9) for _ in range(9)]
  shown = [
    _promotion(12, 7, 1, "3", "0"),
    _promotion(10, 7, 1, "0", "A"),
    _promotion(12, 7, 2, "9", "D"),
    _promotion(10, 9, 1, "5", "0"),  # a store that is nobody's own
    _promotion(11, 7, 1, "5", "0"),  # no ad
    _promotion(10, 7, 2, "0", "0"),
  ]
  config = dataclasses.replace(
    _written(tmp_path, transactions=lines, promotions=shown), promotions=True
  )
  dataset = prepare.load_dataset(config)
  found = dataset.promotions
  assert found.stores_of(["1", "2"]).tolist() == [0, 0] and found.stores == 1
  assert len(found.key) == 3
  day = 86_400
  now_B = int(_DAY0.replace(tzinfo=datetime.UTC).timestamp()) + np.array([0, 6, 8, 20]) * day
  stores_B = found.stores_of(["1"] * 4)
  rows = np.array([[dataset.ads.ad_id.tolist().index(ad) for ad in ("12", "10")]] * 4)
  # Week 2 begins with its first line, on day 8 (of household 3).
  expected = [[[1, 0], [0, 1]], [[1, 0], [0, 1]], [[1, 1], [0, 0]], [[0, 0], [0, 0]]]
  assert found.features(stores_B, now_B, rows).tolist() == expected
  again = prepare.load_dataset(config).promotions
  assert again.key.tolist() == found.key.tolist()
  pq.write_table(pa.table({"product_id": [1]}), tmp_path / "promotions.parquet")
  with pytest.raises(DataError, match="promotions.parquet: column 'store_id' is missing"):
    prepare.load_dataset(config)


def test_a_coupon_is_of_the_stores_day(tmp_path):
  """The clock of the lines is five hours ahead: a basket at 3 is of the day before."""
  late = [line for line in _tables()["transactions"] if line["basket_id"] == 31_000_000_002]
  others = [line for line in _tables()["transactions"] if line not in late]
  for hours, covered in ((16, 2), (17, 0), (-7, 2), (-8, 0)):  # _DAY0 is at 12
    moved = [
      line
      | {"transaction_timestamp": line["transaction_timestamp"] + datetime.timedelta(hours=hours)}
      for line in late
    ]
    dataset = prepare.load_dataset(_written(tmp_path, transactions=others + moved))
    assert dataset.report.noted == {"that a redeemed coupon covers": covered}, hours
