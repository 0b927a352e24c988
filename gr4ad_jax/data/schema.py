"""The one schema: an ad table and an event log, as columns in memory."""

import dataclasses
import functools

import numpy as np

from gr4ad_jax.data.promotions import Promotions

SPLITS = ("train", "valid", "test")
DAY = 86_400  # seconds
ATTRIBUTION_DAYS = 30.0  # the default of `DataConfig.attribution_days`
# Of a number of a batch: its square, 1e36, is still finite in float32, which ends at 3.4e38. Sums
# of hundreds of such squares would not be; `objectives/lists.MOST_REWARD` bounds what is squared
# and summed.
LARGEST = 1e18


class DataError(ValueError):
  """Bad input data; the message names file, column, row and value."""


@dataclasses.dataclass(frozen=True)
class AdTable:
  """N ads by column. An ad's row number is its index everywhere in the library."""

  ad_id: np.ndarray  # [N] str
  text: np.ndarray  # [N] str
  account_id: np.ndarray  # [N] str
  category: np.ndarray  # [N] str, "" where unknown
  conversion_type: np.ndarray  # [N] str, "" where unknown
  form: np.ndarray  # [N] str, ad form that picks the text template, "" where unknown
  price: np.ndarray  # [N] float32, money, NaN where unknown
  created: np.ndarray  # [N] int64, unix seconds, -1 where unknown
  vectors: np.ndarray | None = None  # [N, D] float32, precomputed content vectors

  def __len__(self):
    return len(self.ad_id)

  def take(self, rows: np.ndarray) -> "AdTable":
    """Some of the ads: row numbers in the order wanted, or a mask."""
    columns = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    return AdTable(**{name: None if x is None else x[rows] for name, x in columns.items()})

  @functools.cached_property
  def row_of(self) -> dict[str, int]:
    """Row of each ad by its id."""
    return {ad: row for row, ad in enumerate(self.ad_id)}

  @functools.cached_property
  def account_N(self) -> np.ndarray:
    """[N] the advertiser of each ad, as a number from 0."""
    # Numbered by a dict: np.unique of NumPy's strings would pad every id to the longest.
    number = {account: n for n, account in enumerate(sorted(set(map(str, self.account_id))))}
    return np.fromiter((number[str(account)] for account in self.account_id), np.int64, len(self))


@dataclasses.dataclass(frozen=True)
class EventLog:
  """E events by column, in order of user, then visit, then time, then position in the log."""

  user_id: np.ndarray  # [U] str, what `user` counts
  user: np.ndarray  # [E] int32
  request: np.ndarray  # [E] int32, visit number: 0, 1, … over the whole log, ascending
  ad: np.ndarray  # [E] int32, row of the ad table
  time: np.ndarray  # [E] int64, unix seconds
  behavior: np.ndarray  # [E] int8, depth: 0 is the shallowest
  value: np.ndarray  # [E] float32, money
  quantity: np.ndarray  # [E] float32, units
  split: np.ndarray  # [E] int8, index into SPLITS, of the visit in whose period it happened

  def __len__(self):
    return len(self.ad)

  def columns(self, rows: np.ndarray | slice) -> dict[str, np.ndarray]:
    """The columns of some events, by name: all but `user_id`, which counts users."""
    names = (field.name for field in dataclasses.fields(self) if field.name != "user_id")
    return {name: getattr(self, name)[rows] for name in names}

  def take(self, rows: np.ndarray | slice) -> "EventLog":
    """Some of the events; its users stay, and so do the numbers of visits."""
    return dataclasses.replace(self, **self.columns(rows))


@dataclasses.dataclass(frozen=True)
class Report:
  """What reading a source did: counts, and the rows that are not in the event log."""

  ads: int
  users: int
  events: dict[str, int]  # by split
  requests: dict[str, int]  # by split
  rows: int  # of the source's event file
  merged: int = 0  # rows added to another row of the same line
  dropped: dict[str, int] = dataclasses.field(default_factory=dict)  # rows set aside, by reason
  noted: dict[str, int] = dataclasses.field(default_factory=dict)  # events, by what is said of them

  def __str__(self):
    parts = [f"{self.ads} ads", f"{self.users} users"]
    parts += [f"{self.events[s]} events in {self.requests[s]} requests of {s}" for s in SPLITS]
    parts += [f"{self.rows} rows read"] + ([f"{self.merged} merged"] if self.merged else [])
    parts += [f"{count} dropped ({reason})" for reason, count in self.dropped.items()]
    return ", ".join(parts + [f"{count} events {what}" for what, count in self.noted.items()])


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A prepared data set."""

  name: str
  ads: AdTable
  events: EventLog
  behaviors: tuple[str, ...]  # shallowest first
  report: Report | None = None
  attribution_days: float = ATTRIBUTION_DAYS  # a visit's events are targets up to so long after it
  promotions: Promotions | None = None  # with --promotions
  priced_by_sales: bool = False  # whether prices and dates of ads follow from the train events
