"""`amazon_reviews`: products and reviews as the sequential-recommendation benchmarks index them.

McAuley, Targett, Shi and van den Hengel, "Image-based recommendations on styles and substitutes",
SIGIR 2015. The user brings the two files; they are not part of this package.
"""

from typing import Any

import numpy as np

from gr4ad_jax.builders import base
from gr4ad_jax.config import DataConfig
from gr4ad_jax.data import visits
from gr4ad_jax.data.extras import optional
from gr4ad_jax.data.schema import AdTable, Dataset
from gr4ad_jax.reading import column_files, tables, times
from gr4ad_jax.reading.checks import Cells

DAY = 86_400  # seconds


class AmazonReviews(base.TableBuilder):
  """`ads_path`: item_id, text, attribute_ids; `events_path`: user_id, item_id, position (0 is the
  oldest).

  Each review is a request of its own, of value 1. The benchmark has order but no clock: a user's
  review at position p is given the time p days. The ad's id is `item_id`; its category is the
  attribute ids joined by spaces, its account the first of them ("none" without), since the files
  name no seller.
  """

  @classmethod
  def sources(cls, data: DataConfig) -> dict[str, str]:
    """Both paths. Raises DataError where one is not set or not there."""
    return tables.source_files(data)

  @classmethod
  def options(cls, data: DataConfig) -> dict[str, Any]:
    """How the files are read."""
    return {"reader": column_files.READER}

  @classmethod
  def read(cls, data: DataConfig) -> Dataset:
    """Both files, checked. Raises DataError."""
    item_cells = column_files.read_file(data.ads_path, ("item_id", "text", "attribute_ids"))
    review_cells = column_files.read_file(data.events_path, ("user_id", "item_id", "position"))
    ads = _items(item_cells)
    user_E, user_id = review_cells["user_id"].ids()
    events = visits.ordered_log(
      user_id,
      user=user_E,
      ad=tables.rows_of(review_cells["item_id"], ads),
      # Positions in place of moments: a day apart, so that their order is kept and no two are at
      # once.
      time=DAY * _positions(review_cells["position"]),
      behavior=np.zeros(len(user_E), np.int8),
      value=np.ones(len(user_E), np.float32),
      quantity=np.ones(len(user_E), np.float32),
      # Every review is a visit of its own.
      request=np.arange(len(user_E)),
    )
    return Dataset(
      "amazon_reviews", ads, events, ("review",), base.report(ads, events, rows=len(user_E))
    )


def _positions(cells: Cells) -> np.ndarray:
  """[E] int64, whole numbers whose day is a time (`times.MAX_TIME`). Raises DataError."""
  position_E = cells.numbers()
  for bad_E, problem in (
    (position_E % 1 != 0, "is no whole number"),
    (position_E >= times.MAX_TIME // DAY, f"is not less than {times.MAX_TIME // DAY}"),
  ):
    if bad_E.any():
      row = int(np.argmax(bad_E))
      raise cells.bad(row, float(position_E[row]), problem)
  return position_E.astype(np.int64)


def _items(cells: dict[str, Cells]) -> AdTable:
  arrow = optional("pyarrow")
  attributes = cells["attribute_ids"]
  words = [[str(attribute) for attribute in entry] for entry in attributes.lists()]
  derived = {
    # The first attribute stands for the account, as these products have no seller.
    "account_id": [entry[0] if entry else "none" for entry in words],
    "category": [" ".join(entry) for entry in words],
  }
  made = {
    name: attributes.beside("attribute_ids", arrow.array(column))
    for name, column in derived.items()
  }
  return tables.ad_table({"ad_id": cells["item_id"], "text": cells["text"], **made})
