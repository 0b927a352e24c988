"""Coupons of Complete Journey: which lines a redeemed one covers. They are reported, and no more: a
coupon is known when it is redeemed, after the request.
"""

import numpy as np

from gr4ad_jax.builders.journey_tables import columns, ids_as_numbers, numbers_among, seconds
from gr4ad_jax.data.schema import DAY, AdTable, EventLog

# The days of redemptions are those of the stores, five hours behind the clock of the lines.
_BEHIND = 5 * 3600  # seconds


def covered(redemptions_path: str, coupons_path: str, ads: AdTable, events: EventLog) -> np.ndarray:
  """Whether each event is of a product that a coupon covers which the user redeemed that day.

  Args:
    redemptions_path: the table `coupon_redemptions`.
    coupons_path: the table `coupons`.
    ads: as the builder made them.
    events: likewise.

  Returns:
    [E] bool.

  Raises:
    DataError: a table without a column that is needed.
  """
  redeemed = columns(
    redemptions_path, "household_id", "coupon_upc", "campaign_id", "redemption_date"
  )
  coupons = columns(coupons_path, "coupon_upc", "campaign_id", "product_id")
  # One row for each redemption and product that its coupon covers.
  table = redeemed.join(coupons, ["coupon_upc", "campaign_id"], join_type="inner")
  household_ids = ids_as_numbers(events.user_id, "household_id")
  product_ids = ids_as_numbers(ads.ad_id, "product_id")
  # Redemptions of households or products that the data set lacks are passed over.
  user, user_known = numbers_among(table["household_id"].to_numpy(), household_ids)
  ad, ad_known = numbers_among(table["product_id"].to_numpy(), product_ids)
  known = user_known & ad_known
  day = seconds(table["redemption_date"]) // DAY
  # One number for each (user, ad, day); `days` is more than any of them, so none collide.
  days = int(max(day.max(initial=0), events.time.max() // DAY)) + 1
  keys = (user[known] * len(ads) + ad[known]) * days + day[known]
  # The clock of the lines is moved to that of the redemptions.
  day_E = (events.time - _BEHIND) // DAY
  return np.isin((events.user.astype(np.int64) * len(ads) + events.ad) * days + day_E, keys)
