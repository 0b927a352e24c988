"""`online_retail`: the shipped Online Retail II, purchases of a gift wholesaler-retailer.

Chen, D. (2012). Online Retail II. UCI Machine Learning Repository. https://doi.org/10.24432/C5CG6D,
CC BY 4.0.
"""

import pathlib
import re

import numpy as np

from gr4ad_jax.builders import base, sales
from gr4ad_jax.config import DataConfig
from gr4ad_jax.data import visits
from gr4ad_jax.data.schema import AdTable, Dataset
from gr4ad_jax.reading import column_files, tables

FOLDER = pathlib.Path(__file__).parents[1] / "data" / "online_retail"
SOURCE = FOLDER / "online_retail_ii.parquet"
PRODUCT_CODE = re.compile(r"\d{5}")  # then any suffix: 85123A is a product, POST is not
MIN_CUSTOMERS = 5  # of a product
RANGE_DIGITS = 3


class OnlineRetail(base.TableBuilder):
  """An ad is a stock code, a request an invoice, an event a line: (customer, invoice, code), money
  and units summed.

  Kept are stock codes that begin with five digits and that five customers or more bought. The text
  is the code's most frequent description (of equals the latest). There is no advertiser in the
  data: `account_id` is the code's first three digits, the range of the catalogue that it belongs
  to, known before any sale. `price` (the median line's unit price, in pounds) and `created` (the
  first sale) come from train alone and are unknown for products not sold there.
  """

  PRICED_BY_SALES = True

  @classmethod
  def sources(cls, data: DataConfig) -> dict[str, str]:
    """The shipped file. Raises DataError where the installation lacks it."""
    column_files.check_file("online_retail", str(SOURCE))
    return {"online_retail": str(SOURCE)}

  @classmethod
  def read(cls, data: DataConfig) -> Dataset:
    """The shipped file by the rules above. Raises DataError."""
    cells = column_files.read_file(
      str(SOURCE),
      (
        "invoice",
        "stock_code",
        "description",
        "quantity",
        "invoice_time",
        "unit_price_gbp",
        "customer_id",
      ),
    )
    customer_E, customer_id = cells["customer_id"].labels()
    invoice_E, invoices = cells["invoice"].labels()
    # The inverse of the sort: each invoice's place in the order of their numbers.
    # Numbered in the order of invoice numbers.
    invoice_E = np.argsort(np.argsort(invoices))[invoice_E]
    code_E, codes = cells["stock_code"].labels()
    time_E = cells["invoice_time"].times()
    quantity_E = cells["quantity"].numbers()
    value_E = quantity_E.astype(np.float64) * cells["unit_price_gbp"].numbers()

    kept_E, dropped = _kept(codes, code_E, customer_E)
    ad_codes = np.unique(code_E[kept_E])
    # Ads are numbered in the order of their codes, not of their first sale.
    ad_codes = ad_codes[np.argsort(codes[ad_codes])]
    # -1 for codes that are no ads.
    ad_of_code = np.full(len(codes), -1)
    ad_of_code[ad_codes] = np.arange(len(ad_codes))
    ad_E = ad_of_code[code_E[kept_E]]
    lines = _lines(
      customer_E[kept_E],
      invoice_E[kept_E],
      ad_E,
      time_E[kept_E],
      value_E[kept_E],
      quantity_E[kept_E],
    )
    events = visits.ordered_log(customer_id, behavior=np.zeros(len(lines["ad"]), np.int8), **lines)
    text = _descriptions(ad_E, cells["description"], kept_E, time_E[kept_E])
    ads = sales.with_sales(_products(codes[ad_codes], text), events)
    report = base.report(
      ads, events, rows=len(kept_E), merged=int(kept_E.sum()) - len(events), dropped=dropped
    )
    return Dataset("online_retail", ads, events, ("purchase",), report)


def _kept(
  codes: np.ndarray, code_E: np.ndarray, customer_E: np.ndarray
) -> tuple[np.ndarray, dict[str, int]]:
  """(rows of products that enough customers bought [E] bool, the others counted by reason)."""
  is_product = np.array([PRODUCT_CODE.match(code) is not None for code in codes])
  # Distinct pairs of code and customer: a customer counts once for a product.
  pairs = np.unique(np.stack([code_E, customer_E]), axis=1)
  is_bought = np.bincount(pairs[0], minlength=len(codes)) >= MIN_CUSTOMERS
  dropped = {
    "stock code is no product": int((~is_product[code_E]).sum()),
    f"product of fewer than {MIN_CUSTOMERS} customers": int(
      (is_product & ~is_bought)[code_E].sum()
    ),
  }
  return (is_product & is_bought)[code_E], dropped


def _lines(
  customer_E: np.ndarray,
  invoice_E: np.ndarray,
  ad_E: np.ndarray,
  time_E: np.ndarray,
  value_E: np.ndarray,
  quantity_E: np.ndarray,
) -> dict[str, np.ndarray]:
  """Rows of one customer, invoice and ad become one; all lines of an invoice bear its first
  time.
  """
  # Customer and invoice in one number; the invoice takes the lower 32 bits.
  visit, visit_E = np.unique(customer_E.astype(np.int64) << 32 | invoice_E, return_inverse=True)
  visit_time = np.full(len(visit), np.iinfo(np.int64).max)
  # Lines of an invoice may have times some minutes apart.
  np.minimum.at(visit_time, visit_E, time_E)
  line, line_E = np.unique(visit_E.astype(np.int64) << 32 | ad_E, return_inverse=True)
  visit_of_line = line >> 32
  return {
    "user": visit[visit_of_line] >> 32,
    "request": visit[visit_of_line] & 0xFFFFFFFF,
    "ad": line & 0xFFFFFFFF,
    "time": visit_time[visit_of_line],
    "value": np.bincount(line_E, value_E),
    "quantity": np.bincount(line_E, quantity_E),
  }


def _descriptions(ad_E: np.ndarray, cells, kept_E: np.ndarray, time_E: np.ndarray) -> np.ndarray:
  """[N] the most frequent description of each ad, of equals the latest; `ad_E` and `time_E` are
  of the kept rows.
  """
  text_E, texts = cells.labels()
  pair, pair_E, count = np.unique(
    ad_E.astype(np.int64) << 32 | text_E[kept_E], return_inverse=True, return_counts=True
  )
  latest = np.zeros(len(pair), np.int64)
  np.maximum.at(latest, pair_E, time_E)
  # The last of an ad's pairs in this order: the most frequent, and of equals the latest.
  best = np.lexsort((latest, count, pair >> 32))
  # True where the next pair is of another ad.
  last_of_ad = np.append(np.diff(pair[best] >> 32) != 0, True)
  return texts[pair[best][last_of_ad] & 0xFFFFFFFF]


def _products(ad_id: np.ndarray, text: np.ndarray) -> AdTable:
  """The ad table, without what only sales tell."""
  blank = np.full(len(ad_id), "", object)
  return AdTable(
    ad_id=ad_id,
    text=tables.one_line(text),
    account_id=np.array([code[:RANGE_DIGITS] for code in ad_id], object),
    category=blank,
    conversion_type=blank,
    form=blank,
    price=np.full(len(ad_id), np.nan, np.float32),
    created=np.full(len(ad_id), -1, np.int64),
  )
