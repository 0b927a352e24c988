"""A reason in words: what is known of a user and an ad, as one or two sentences."""

import dataclasses
import math

from gr4ad_jax.data.schema import DAY

_BOUGHT = {"purchase": "bought", "cart": "put in the cart", "click": "clicked", "view": "viewed"}
_LEAST = math.log(1.05)  # nats: a slot that changes the chance by less is not worth a word


@dataclasses.dataclass(frozen=True)
class Known:
  """What a sentence is made of.

  Attributes:
    times: visits in which the user took the ad.
    behavior: the deepest thing that the user did with it, as the log names it; empty: nothing.
    ago: seconds since then; None: never.
    near: names of ads of the history that are often taken together with this one, nearest first.
    rises: whether the ad rises among all users.
    copied: share of its probability that is copied from the context, 0 to 1.
    strongest: name of the slot that carries most of its log probability; empty: there is none.
    is_itself: whether that slot is the ad itself.
    carried: nats that this slot carries.
  """

  times: int
  behavior: str
  ago: float | None
  near: tuple[str, ...]
  rises: bool
  copied: float
  strongest: str
  is_itself: bool
  carried: float


def sentence(known: Known) -> str:
  """Why the ad is in the list, in plain words: facts first, then what the model made of them."""
  facts = []
  if known.times and known.ago is not None:
    verb = _BOUGHT.get(known.behavior, "taken")
    facts.append(f"{verb} {_count(known.times, 'time')}, last {_ago(known.ago)}")
  else:
    facts.append("new to the user")
  if known.near:
    facts.append(f"often taken with {' and '.join(known.near)}")
  if known.rises:
    facts.append("taken more and more by everyone")
  first = _capital("; ".join(facts)) + "."
  return f"{first} {_weighed(known)}"


def _weighed(known: Known) -> str:
  """What the context did for the ad's probability."""
  # Half a percent is the least that rounds to 1 %.
  way = (
    f"{known.copied:.0%} of its probability is copied from the context"
    if known.copied >= 0.005
    else "All of its probability is generated, none copied"
  )
  if not known.strongest or known.carried < _LEAST:
    return f"{way}; no single ad of the context matters much."
  what = "the ad's own place there" if known.is_itself else known.strongest
  return f"{way}; without {what} it would be {_times_less(known.carried)} likely."


def _times_less(nats: float) -> str:
  # e^14 is more than a million; beyond it a figure says nothing.
  factor = math.exp(min(nats, 14.0))
  if factor >= 1e6:
    return "a million times or more less"
  if factor < 2:
    return f"{1 - 1 / factor:.0%} less"
  return f"{factor:,.0f} times less" if factor >= 10 else f"{factor:.1f} times less"


def _ago(seconds: float) -> str:
  days = int(seconds // DAY)
  return "today" if days < 1 else f"{_count(days, 'day')} ago"


def _count(number: int, what: str) -> str:
  if what == "time" and number == 1:
    return "once"
  return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _capital(text: str) -> str:
  return text[:1].upper() + text[1:]
