"""The HTTP interface's JSON, with its bounds: what comes in is checked here, and the OpenAPI
document is made from it.

Needs the `serve` extra.
"""

from typing import Annotated, Literal

from gr4ad_jax.config import ServeConfig
from gr4ad_jax.reading.checks import LONGEST_ID, MAX_NUMBER
from gr4ad_jax.reading.times import MAX_TIME
from gr4ad_jax.serving.reason_schemas import Reasons

try:
  import pydantic
except ImportError as error:
  raise ImportError("pydantic is missing: pip install 'gr4ad_jax[serve]'") from error

Id = Annotated[
  str, pydantic.Field(min_length=1, max_length=LONGEST_ID, pattern=r"^[^\x00-\x1f\x7f]+$")
]
Text = Annotated[str, pydantic.Field(max_length=10_000, pattern=r"^[^\x00]*$")]
Word = Annotated[str, pydantic.Field(max_length=LONGEST_ID, pattern=r"^[^\x00]*$")]
Time = Annotated[int, pydantic.Field(ge=0, lt=MAX_TIME, description="Unix seconds.")]
# A request may come right after the last event that a log may have.
Now = Annotated[int, pydantic.Field(ge=0, le=MAX_TIME, description="Unix seconds.")]
Money = Annotated[float, pydantic.Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
Value = Annotated[
  Money | None,
  pydantic.Field(
    description="Money; below 0 it takes back, which only the deepest behaviour can; left out: 0."
  ),
]
Quantity = Annotated[
  Money | None,
  pydantic.Field(description="Units; below 0 only with a value below 0; left out: 1."),
]
Amount = Annotated[float, pydantic.Field(ge=0, le=MAX_NUMBER)]


class _Strict(pydantic.BaseModel):
  """Types are not converted, numbers are finite, unknown fields are refused."""

  model_config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Event(_Strict):
  """One event of a history."""

  ad_id: Id
  time: Time | None = pydantic.Field(None, description="Unix seconds; left out: just before `now`.")
  behavior: Word | None = pydantic.Field(
    None, description="As in the event log; left out: the deepest."
  )
  value: Value = None
  quantity: Quantity = None
  request_id: Word | None = pydantic.Field(None, description="Events that share it are one visit.")


class RecommendRequest(_Strict):
  """Exactly one of `user` and `history` is needed."""

  user: Id | None = pydantic.Field(None, description="A user of whom events are known.")
  history: list[Id | Event] | None = pydantic.Field(
    None, description="The user's events, in any order; ids for short."
  )
  k: int = pydantic.Field(10, ge=1, description="Ads wanted.")
  now: Now | None = pydantic.Field(
    None, description="Unix seconds of the request; left out: now, or the end of what is known."
  )
  deadline_ms: float | None = pydantic.Field(
    None, gt=0, le=60_000, description="Left out: as the server is set."
  )
  cache: bool = pydantic.Field(True, description="Whether an answer of the last minute will do.")
  fallback: bool | None = pydantic.Field(
    None,
    description=(
      "Popular ads in place of the model's: null: past the deadline; true: in overload "
      "too; false: no."
    ),
  )
  explain: bool = pydantic.Field(
    False, description="Whether to tell the beam tree, and why the first ads are there."
  )
  seen_ads: Literal["left", "masked"] | None = pydantic.Field(
    None, description="Whether ads of the history may be answered; left out: as the server is set."
  )
  seen_days: float | None = pydantic.Field(
    None,
    ge=0,
    le=36_500,
    description="With seen_ads=masked: only those of the last so many days; 0: of any age.",
  )
  not_ads: list[Id] = pydantic.Field([], max_length=1_000, description="Ads that are not wanted.")
  only_accounts: list[Word] = pydantic.Field(
    [], max_length=1_000, description="The only advertisers whose ads are wanted; empty: all."
  )
  only_categories: list[Word] = pydantic.Field(
    [], max_length=1_000, description="The only categories whose ads are wanted; empty: all."
  )

  @pydantic.model_validator(mode="after")
  def _one_of_two(self):
    # Both given, or neither.
    if (self.user is None) == (self.history is None):
      raise ValueError("exactly one of 'user' and 'history' is needed")
    return self


def limited_request(limits: ServeConfig) -> type[RecommendRequest]:
  """`RecommendRequest` with a server's limits on k and on the length of the history."""

  class LimitedRequest(RecommendRequest):
    __doc__ = RecommendRequest.__doc__
    history: list[Id | Event] | None = pydantic.Field(
      None,
      max_length=limits.max_history,
      description="The user's events, in any order; ids for short.",
    )
    k: int = pydantic.Field(min(10, limits.max_k), ge=1, le=limits.max_k, description="Ads wanted.")

  return LimitedRequest


class AdFields(_Strict):
  """Fields of an ad; those left out, or null, stay as they are. A new ad needs `text` and
  `account_id`.
  """

  text: Text | None = None
  account_id: Word | None = None
  category: Word | None = None
  conversion_type: Word | None = None
  form: Word | None = None
  price: Amount | None = None
  created: Annotated[int, pydantic.Field(ge=0, lt=MAX_TIME)] | None = pydantic.Field(
    None, description="Unix seconds; of a new ad left out: the moment of the request."
  )
  vector: list[float] | None = pydantic.Field(
    None, max_length=8192, description="Content vector of a model of yours."
  )
  status: Literal["active", "paused"] | None = None


class AccountTerms(_Strict):
  """What an advertiser has agreed to."""

  daily_budget: Annotated[float, pydantic.Field(gt=0, le=MAX_NUMBER)] | None = pydantic.Field(
    description="Money that may be spent in a day (UTC); null: no limit."
  )


class Account(pydantic.BaseModel):
  """An advertiser's terms, and what was spent."""

  account_id: str
  daily_budget: float | None
  spent_today: float = pydantic.Field(description="Predicted value of the ads answered, money.")
  planned: float | None = pydantic.Field(description="What may have been spent by now, money.")


class Ad(pydantic.BaseModel):
  """A recommended ad."""

  ad_id: str
  text: str
  account_id: str
  log_p: float = pydantic.Field(
    description="Natural log of the probability of its UA-SID; of a fallback, of its share."
  )
  score: float = pydantic.Field(
    description=(
      "What the list is ordered by, largest first: by likelihood log_p, up to a "
      "constant of the request."
    )
  )
  ecpm: float = pydantic.Field(description="Predicted value, money.")
  codes: list[int] = pydantic.Field(description="Its UA-SID.")
  seen: bool = pydantic.Field(description="Whether the user's history has it.")
  propensity: float | None = pydantic.Field(
    None, description="With --explore: the chance that the ad had to stand in its place."
  )
  reasons: Reasons | None = pydantic.Field(
    None,
    description=(
      "With `explain`, of the first ads: why they are there. Left out while the server still "
      "compiles what it needs for that."
    ),
  )


class Prefix(pydantic.BaseModel):
  """A node of the beam tree."""

  codes: list[int]
  log_p: float = pydantic.Field(
    description="Natural log of the probability of all UA-SIDs that begin so."
  )
  beams: int = pydantic.Field(description="Final beams below it.")
  score: float | None = pydantic.Field(
    None, description="At the last level: what the list is ordered by."
  )
  ecpm: float | None = pydantic.Field(
    None, description="At the last level: predicted value, money."
  )


class Recommendations(pydantic.BaseModel):
  """The answer to a request."""

  source: Literal["model", "cache", "fallback"]
  checkpoint: int
  beams: list[int]
  latency_ms: float
  request_id: str = pydantic.Field("", description="Of the impression in the stream.")
  ads: list[Ad]
  tree: list[list[Prefix]] | None = pydantic.Field(
    None, description="With `explain`: the prefixes kept at each level."
  )


class StoredAd(pydantic.BaseModel):
  """An ad of the catalogue."""

  ad_id: str
  text: str
  account_id: str
  category: str
  conversion_type: str
  form: str
  price: float | None
  created: int | None
  status: str
  codes: list[int]


class Written(pydantic.BaseModel):
  """What became of a write."""

  ad_id: str
  result: Literal["created", "updated", "deleted"]


class Users(pydantic.BaseModel):
  """User ids, in order."""

  users: list[str]


class PastEvent(pydantic.BaseModel):
  """An event of the log."""

  ad_id: str
  text: str
  time: int
  behavior: str
  value: float
  quantity: float


class History(pydantic.BaseModel):
  """A user's events, latest first."""

  user: str
  events: list[PastEvent]


class PostedEvent(_Strict):
  """One event of a user. Posted again under its `event_id` it counts once."""

  event_id: Id
  user_id: Id = pydantic.Field(description="A new one makes a new user.")
  ad_id: Id = pydantic.Field(description="Of an ad that is not known yet, the event waits for it.")
  time: Time
  behavior: Word | None = pydantic.Field(
    None, description="As in the event log; left out: the deepest."
  )
  value: Value = None
  quantity: Quantity = None
  request_id: Word | None = pydantic.Field(
    None, description="Events that share it are one visit; left out: a pause starts a visit."
  )


class PostedEvents(_Strict):
  """Events, in any order."""

  events: list[PostedEvent] = pydantic.Field(min_length=1, max_length=1_000)


class SetAside(pydantic.BaseModel):
  """An event that does not count, now or at all."""

  event_id: str
  reason: str


class Taken(pydantic.BaseModel):
  """What became of posted events."""

  accepted: int = pydantic.Field(description="Events that are kept from now on.")
  repeated: int = pydantic.Field(description="Events that were there already.")
  set_aside: list[SetAside]


class KnownUser(pydantic.BaseModel):
  """What is known of a user."""

  user: str
  events: int
  visits: int
  first_time: int = pydantic.Field(description="Unix seconds.")
  last_time: int = pydantic.Field(description="Unix seconds.")
  value: float = pydantic.Field(description="Money of all events.")
  latest: list[PastEvent]


class Erased(pydantic.BaseModel):
  """What became of a user's erasure."""

  user: str
  records: int = pydantic.Field(description="Records of the stream that went.")


class Problem(pydantic.BaseModel):
  """Every error has this shape."""

  error: str
