"""What builders of purchases share: what only sales tell of an ad."""

import dataclasses

import numpy as np

from gr4ad_jax.data import visits
from gr4ad_jax.data.schema import AdTable, EventLog


def with_sales(ads: AdTable, events: EventLog) -> AdTable:
  """Sets price (the median line's unit price, money) and first sale from the train lines; both are
  unknown for ads that were not sold there, whatever the table said before.
  """
  train = events.split == visits.TRAIN
  ad_E = events.ad[train]
  time_E = events.time[train]
  unit_E = _unit_prices(events)[train]
  # By ad, then by price, so that the median stands in the middle of each ad's run.
  order = np.lexsort((unit_E, ad_E))
  sold, begin, count = np.unique(ad_E[order], return_index=True, return_counts=True)
  # Of an even number the mean of the two in the middle.
  middle = (unit_E[order][begin + (count - 1) // 2] + unit_E[order][begin + count // 2]) / 2
  price = np.full(len(ads), np.nan, np.float32)
  # The latest moment there is, so that the minimum below replaces it.
  created = np.full(len(ads), np.iinfo(np.int64).max)
  price[sold] = np.round(middle, 4)
  np.minimum.at(created, ad_E, time_E)
  created[created == np.iinfo(np.int64).max] = -1
  return dataclasses.replace(ads, price=price, created=created)


def with_first_sales(ads: AdTable, events: EventLog) -> AdTable:
  """Sets the price of each ad to the unit price of its first sale, of whatever split: all that is
  known when the ad is first heard of. Ads without a sale have none.
  """
  # By ad, then by time. Of one moment the first in the log stands first, since the sort is stable.
  order = np.lexsort((events.time, events.ad))
  sold, begin = np.unique(events.ad[order], return_index=True)
  price = np.full(len(ads), np.nan, np.float32)
  price[sold] = np.round(_unit_prices(events)[order][begin], 4)
  return dataclasses.replace(ads, price=price)


def _unit_prices(events: EventLog) -> np.ndarray:
  """[E] money for one unit."""
  return events.value / events.quantity
