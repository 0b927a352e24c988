"""Tiny data sets, written out by hand."""

import numpy as np
import pytest

from gr4ad_jax.data import schema


def _dataset(rows, num_ads, name="online_retail", behaviors=("purchase",)):
  """rows: (user, request, ad, value, split[, behaviour]) in log order."""
  columns = list(zip(*[(*row, 0)[:6] for row in rows], strict=True))
  user, request, ad = (np.array(column, np.int32) for column in columns[:3])
  blank = np.full(num_ads, "")
  ads = schema.AdTable(
    ad_id=np.array([f"ad{n}" for n in range(num_ads)]),
    text=blank,
    account_id=blank,
    category=blank,
    conversion_type=blank,
    form=blank,
    price=np.ones(num_ads, np.float32),
    created=np.full(num_ads, -1, np.int64),
  )
  events = schema.EventLog(
    user_id=np.array([f"user{n}" for n in range(user.max() + 1)]),
    user=user,
    request=request,
    ad=ad,
    time=request.astype(np.int64) * 3600,
    behavior=np.array(columns[5], np.int8),
    value=np.array(columns[3], np.float32),
    quantity=np.ones(len(rows), np.float32),
    split=np.array([schema.SPLITS.index(split) for split in columns[4]], np.int8),
  )
  return schema.Dataset(name, ads, events, behaviors)


BAZAAR_VISITS = (9, 1, 3, 4, 2, 3, 5, 3)  # of each user
BAZAAR_ADS = 13


def _bazaar_rows(seed):
  """A log with everything that can happen in one: several events a line, kinds of behaviour, a tail
  of values.

  User 0 has more lines than any window of a simple method; the last two ads are bought on the last
  visits alone.
  """
  rng = np.random.default_rng(seed)
  rows, request = [], 0
  for user, number in enumerate(BAZAAR_VISITS):
    for visit in range(number):
      split = (
        ("test", "valid")[number - 1 - visit] if number >= 3 and number - 1 - visit < 2 else "train"
      )
      last_ad = BAZAAR_ADS if split == "test" else BAZAAR_ADS - 2
      events = 12 if user == 0 else int(rng.integers(2, 6))
      for _ in range(events):
        ad = min(
          int(rng.integers(0, last_ad)), int(rng.integers(0, last_ad))
        )  # low rows are popular
        value = float(np.round(rng.exponential(20), 2))
        rows.append((user, request, ad, value, split, int(rng.integers(0, 3))))
      request += 1
  return rows


@pytest.fixture(scope="session")
def bazaar():
  """A random log of eight customers, 13 ads, three kinds of behaviour."""
  return _dataset(_bazaar_rows(3), BAZAAR_ADS, behaviors=("click", "cart", "purchase"))


@pytest.fixture(scope="session")
def make_dataset():
  return _dataset


@pytest.fixture(scope="session")
def shop():
  """Two customers with three or more visits, one with a single visit."""
  rows = [
    (0, 0, 3, 5.0, "train"),
    (0, 0, 1, 1.0, "train"),
    (0, 1, 3, 5.0, "train"),
    (0, 1, 3, 2.0, "train"),  # the same line as the one above
    (0, 2, 2, 90.0, "valid"),
    (0, 3, 3, 4.0, "test"),
    (0, 3, 0, 6.0, "test"),
    (0, 3, 3, 1.0, "test"),
    (1, 4, 1, 1.0, "train"),
    (1, 5, 0, 1.0, "valid"),
    (1, 6, 2, 8.0, "test"),
    (2, 7, 1, 1.0, "train"),
    (2, 7, 4, 1.0, "train"),
  ]
  return _dataset(rows, num_ads=6)
