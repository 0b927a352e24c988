"""Customers in words: what they had, what they would have been shown and why, what they took."""

import dataclasses
import datetime
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gr4ad_jax.answering.contexts import UserHistories
from gr4ad_jax.answering.recommender import Recommender
from gr4ad_jax.config import ConfigError
from gr4ad_jax.data.schema import DAY, EventLog
from gr4ad_jax.reporting import page

SHOWN = 5  # ads of a list
_PAST = 3  # ads of the history that are named


@dataclasses.dataclass(frozen=True)
class Customer:
  """One customer's last visit, predicted from those before it.

  Attributes:
    user: the id.
    about: what is known of the user, a sentence.
    rows: of each ad of the list: rank, name, whether it was taken, chance, value, and why.
    taken: names of what was taken in the visit, at most as many as the list has, and how many more.
  """

  user: str
  about: str
  rows: tuple[tuple[str, ...], ...]
  taken: str


def customers(
  recommender: Recommender,
  histories: UserHistories,
  count: int,
  seed: int = 0,
  told: Callable[[int, int], None] = lambda *_: None,
) -> list[Customer]:
  """Customers that are drawn among those with two visits or more, each told by `_customer`.

  Args:
    recommender: of the run.
    histories: of its log.
    count: how many; fewer come back where there are fewer.
    seed: of the draw.
    told: hears how many are done, and of how many.
  """
  order = np.random.default_rng(seed).permutation(len(histories.user_ids))
  found = []
  for n in order:
    log = histories.log_of(histories.user_ids[int(n)])
    if log is not None and len(np.unique(log.request)) > 1:
      found.append(_customer(recommender, log))
      told(len(found), count)
    if len(found) == count:
      break
  return found


def _customer(recommender: Recommender, log: EventLog) -> Customer:
  # The last visit is what is predicted.
  last = log.request == log.request[-1]
  now = int(log.time[last].min())
  # An earlier visit may go on after this one has begun.
  before = log.take(~last & (log.time <= now))
  found = recommender.recommend_log(before, SHOWN, now)[0]
  try:
    found = recommender.explained(before, now, found)
  except ConfigError:
    # A model that gives no reasons still has a list.
    pass
  ads = recommender.ads
  taken = {str(ads.ad_id[ad]) for ad in log.ad[last]}
  rows = [
    (
      str(rank),
      ad.text or ad.ad_id,
      "**taken**" if ad.ad_id in taken else "",
      f"{np.exp(ad.log_p):.2%}",
      f"{ad.ecpm:,.2f}",
      ad.reasons["sentence"] if ad.reasons else "",
    )
    for rank, ad in enumerate(found, 1)
  ]
  # Each ad once, in the order of the visit.
  names = [_name(recommender, ad) for ad in dict.fromkeys(log.ad[last].tolist())]
  more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
  return Customer(
    str(log.user_id[0]), _about(recommender, before, now), tuple(rows),
    f"{', '.join(names[:SHOWN])}{more}",
  )  # fmt: skip


def _about(recommender: Recommender, before: EventLog, now: int) -> str:
  visits = len(np.unique(before.request))
  if not visits:
    return "Nothing was known before this visit."
  day = datetime.datetime.fromtimestamp(now, datetime.UTC).date()
  ago = int((now - before.time.max()) // DAY)
  ads, counts = np.unique(before.ad, return_counts=True)
  # Equal counts go by the row, so that the page is the same each time.
  order = np.lexsort((ads, -counts))[:_PAST]
  most = ", ".join(f"{_name(recommender, int(ads[n]))} ({counts[n]})" for n in order)
  value = float(before.value.sum())
  spent = f", {value:,.0f} in all" if value else ""
  return (
    f"Before {day}: {visits} visit{'s' if visits > 1 else ''}{spent}, the last "
    f"{ago} day{'' if ago == 1 else 's'} earlier. Most often: {most}."
  )


def _name(recommender: Recommender, ad: int) -> str:
  return str(recommender.ads.text[ad]) or str(recommender.ads.ad_id[ad])


def as_html(found: Sequence[Customer]) -> str:
  """The customers, one after the other."""
  header = ("", "ad", "", "chance", "value if taken", "why")
  parts: list[Any] = []
  for one in found:
    parts.append(f"<article><h3>Customer {page.escaped(one.user)}</h3>\n")
    parts.append(page.paragraph(one.about))
    parts.append(page.table([header, *one.rows], words=(5,)))
    parts.append(page.paragraph(f"Taken in the visit: {one.taken}."))
    parts.append("</article>\n")
  return "".join(parts)
