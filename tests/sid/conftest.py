"""A small shop: ads in tight groups that are taken together, made from a seed."""

import numpy as np
import pytest

from gr4ad_jax.data import schema

GROUPS, PER_GROUP = 12, 10
NOUNS = (
  "mug",
  "lamp",
  "rug",
  "clock",
  "kite",
  "soap",
  "candle",
  "puzzle",
  "teapot",
  "frame",
  "scarf",
  "tin",
)
TONES = ("red", "blue", "green", "pink", "black", "white", "gold", "silver", "retro", "plain")


def make_ads(count: int = GROUPS * PER_GROUP, **columns) -> schema.AdTable:
  """Ads whose text is a tone and a noun; ad n belongs to group n % GROUPS, which its text does
  not tell apart.
  """
  row = np.arange(count)
  blank = np.full(count, "")
  values = {
    "ad_id": np.char.add("ad", row.astype(str)),
    "text": np.asarray([f"{TONES[n % 10]} {NOUNS[(n // 10) % 12]}" for n in row]),
    "account_id": np.asarray([f"shop{n % 3}" for n in row]),
    "category": blank,
    "conversion_type": blank,
    "form": blank,
    "price": np.linspace(1, 20, count).astype(np.float32),
    "created": np.full(count, -1, np.int64),
  }
  return schema.AdTable(**values | columns)


def make_events(baskets: list[list[int]], split: list[int] | None = None) -> schema.EventLog:
  """A log with one visit a basket, each by a user of its own."""
  visit = np.repeat(np.arange(len(baskets)), [len(basket) for basket in baskets]).astype(np.int32)
  ad = np.concatenate([np.asarray(basket, np.int32) for basket in baskets])
  one, depth, time = (
    np.ones(len(ad), np.float32),
    np.zeros(len(ad), np.int8),
    visit.astype(np.int64),
  )
  of_visit = np.zeros(len(baskets), np.int8) if split is None else np.asarray(split, np.int8)
  users = np.arange(len(baskets)).astype(str)
  return schema.EventLog(users, visit, visit, ad, time, depth, one, one, of_visit[visit])


@pytest.fixture(scope="session")
def shop():
  """120 ads and 600 training visits, each of four ads of one group."""
  rng = np.random.default_rng(0)
  groups = rng.integers(GROUPS, size=600)
  baskets = [
    (group + GROUPS * rng.choice(PER_GROUP, 4, replace=False)).tolist() for group in groups
  ]
  return make_ads(), make_events(baskets)


@pytest.fixture(scope="session")
def make():
  """The two builders, for tests that need data of their own."""
  return make_ads, make_events
