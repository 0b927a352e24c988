"""Displays and mailers of Complete Journey, and the store in which each household shops."""

import numpy as np

from gr4ad_jax.builders.journey_tables import columns, ids_as_numbers, numbers_among, seconds
from gr4ad_jax.data import promotions, visits
from gr4ad_jax.data.extras import optional
from gr4ad_jax.data.promotions import Promotions
from gr4ad_jax.data.schema import Dataset

_NOTHING = "0"  # of a location: neither displayed, nor mailed


def read(path: str, transactions_path: str, dataset: Dataset) -> Promotions:
  """What was displayed and mailed of the data set's ads, in the stores where its users shop.

  A household's store is that of most of its lines in train; of equals the one of the lowest number.

  Args:
    path: the table `promotions`.
    transactions_path: the table `transactions`.
    dataset: as the builder read it.

  Raises:
    DataError: a table without a column that is needed.
  """
  lines = columns(transactions_path, "household_id", "store_id", "week", "transaction_timestamp")
  time_E = seconds(lines["transaction_timestamp"])
  weeks, week_E = np.unique(lines["week"].to_numpy(), return_inverse=True)
  # The first line of a week stands for its beginning: the table of promotions has weeks alone.
  week_start = np.full(len(weeks), np.iinfo(np.int64).max)
  np.minimum.at(week_start, week_E, time_E)
  user_id = dataset.events.user_id
  home_U = _homes(lines["household_id"].to_numpy(), lines["store_id"].to_numpy(), time_E, dataset)

  table = columns(path, "product_id", "store_id", "week", "display_location", "mailer_location")
  compute = optional("pyarrow.compute")
  shown, mailed = (
    compute.not_equal(table[name], _NOTHING).fill_null(False).to_numpy().astype(np.int8)
    for name in ("display_location", "mailer_location")
  )
  # Two bits: displayed, mailed, or both.
  kind = shown * promotions.DISPLAYED + mailed * promotions.MAILED
  ad_ids = ids_as_numbers(dataset.ads.ad_id, "product_id")
  stores = np.unique(home_U[home_U >= 0])
  ad, ad_known = numbers_among(table["product_id"].to_numpy(), ad_ids)
  store, store_known = numbers_among(table["store_id"].to_numpy(), stores)
  week, week_known = numbers_among(table["week"].to_numpy(), weeks)
  # Only what concerns ads, stores and weeks of the data set.
  kept = ad_known & store_known & week_known & (kind > 0)
  # A store without any promotion has nothing to tell: its households' is as one unknown.
  _, is_promoted_U = numbers_among(home_U, stores[np.unique(store[kept])])
  at_U, _ = numbers_among(home_U, stores)
  entries = (ad[kept], store[kept], week[kept])
  return Promotions.of(
    week_start, len(stores), entries, kind[kept], user_id, np.where(is_promoted_U, at_U, -1)
  )


def _homes(
  household_E: np.ndarray, store_E: np.ndarray, time_E: np.ndarray, dataset: Dataset
) -> np.ndarray:
  """[U] the store id of most lines of each user before what is held out, -1 where there is none."""
  events = dataset.events
  # A store is where a household shopped before anything that is predicted.
  held_out = events.split != visits.TRAIN
  until_U = np.full(len(events.user_id), np.iinfo(np.int64).max)
  np.minimum.at(until_U, events.user[held_out], events.time[held_out])
  user_E, known_E = numbers_among(household_E, ids_as_numbers(events.user_id, "household_id"))
  kept_E = known_E & (time_E < until_U[user_E])
  pair, count = np.unique(np.stack([user_E[kept_E], store_E[kept_E]]), axis=1, return_counts=True)
  # The last of a user's pairs in this order has the most lines, and of equals the lowest store.
  order = np.lexsort((-pair[1], count, pair[0]))
  home_U = np.full(len(events.user_id), -1, np.int64)
  # Assignments go in order, so a user's last pair is the one that stays.
  home_U[pair[0][order]] = pair[1][order]
  return home_U
