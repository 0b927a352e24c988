"""From an event to its effect: how long after it was acknowledged a recommendation knows it.

Batches of events are posted beside recommendations, in an open loop. One event of each batch is of
a user of whom nothing was known, and for whom recommendations are then asked until one is given:
before, the server knows no such user. All is seen from outside, over HTTP.
"""

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gr4ad_jax.load import http_load
from gr4ad_jax.load.http_load import Client, Outcome, Phase, spread

PAUSE = 0.02  # seconds between two questions for a user who is not known yet
_PATIENCE = 30.0  # seconds after which an event counts as lost
_EVENTS_A_VISIT = 5
_VISIT_SECONDS = 60  # of the log's time from a visit to the next


class Rates(NamedTuple):
  """What is asked of the server."""

  events: float = 500.0  # a second
  batch: int = 50  # events of a POST
  asks: float = 50.0  # recommendations a second, those for new users among them


class Effect(NamedTuple):
  """What became of a batch of events."""

  status: int  # of the POST; 0: no answer
  acknowledged: float  # seconds from due to the answer of the POST
  effect: float  # seconds from there to the first recommendation that knows it; NaN: none did
  asked: int  # recommendations until then


class Measured(NamedTuple):
  """A load's outcomes."""

  effects: list[Effect]
  asked: list[Outcome]


def events_of(
  users: Sequence[str], ads: Sequence[str], begin: int, batch: int, seed: int
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
  """Endless batches: a new user, and events of visits, the first event of them the new user's.

  Visits end as in a log that is played fast: each is a minute after the one before.

  Args:
    users: who else visits.
    ads: what is taken.
    begin: unix seconds of the first visit.
    batch: events of a batch.
    seed: of what is drawn.
  """
  rng = np.random.default_rng(seed)
  number = 0
  visit = 0
  while True:
    new = f"load-{seed}-{number}"
    events = []
    while len(events) < batch:
      user = users[rng.integers(len(users))] if events else new
      taken = rng.choice(len(ads), min(_EVENTS_A_VISIT, batch - len(events)), replace=False)
      events += [
        {"event_id": f"{new}-{len(events) + at}", "user_id": user, "ad_id": ads[ad],
         "time": begin + _VISIT_SECONDS * visit + at, "request_id": f"load-{seed}-{visit}"}
        for at, ad in enumerate(taken.tolist())
      ]  # fmt: skip
      visit += 1
    number += 1
    yield new, events


async def load(
  post: str, ask: str, batches: Iterator[tuple[str, list[dict[str, Any]]]], users: Sequence[str],
  rates: Rates, seconds: float, seed: int = 0,
) -> Measured:  # fmt: skip
  """Posts to one server and asks another, or the same, for some seconds.

  Args:
    post: address that events are posted to, as http://127.0.0.1:8080.
    ask: address that recommendations come from.
    batches: of `events_of`.
    users: for whom recommendations are asked beside.
    rates: how much of each.
    seconds: how long.
    seed: of the moments.
  """
  poster = Client(post)
  asker = Client(ask)
  a_second = rates.events / rates.batch
  others = max(rates.asks - a_second, 0.0)
  bodies = http_load.requests_of(users, seed, k=10, cache=False, fallback=False)
  try:
    effects, asked = await asyncio.gather(
      _events(poster, asker, batches, a_second, seconds),
      http_load.open_loop(asker, bodies, [Phase("beside", others, seconds)], seed),
    )
  finally:
    poster.close()
    asker.close()
  return Measured(effects, asked)


async def _events(poster: Client, asker: Client, batches, rate: float, seconds: float):
  """Posts a batch whenever one is due, whatever became of those before."""
  clock = asyncio.get_running_loop().time
  begin = clock()
  tasks = []
  for number in range(int(rate * seconds)):
    due = begin + number / rate
    if (wait := due - clock()) > 0:
      await asyncio.sleep(wait)
    tasks.append(asyncio.create_task(_effect(poster, asker, *next(batches), due)))
  return list(await asyncio.gather(*tasks))


async def _effect(poster: Client, asker: Client, user: str, events, due: float) -> Effect:
  """Posts a batch, then asks for its new user until there is an answer."""
  clock = asyncio.get_running_loop().time
  status = 0
  try:
    reply = await poster.request("POST", "/v1/events", json.dumps({"events": events}).encode())
    status = reply.status
  except (OSError, TimeoutError, ValueError):
    pass
  known = clock()
  if status != 202:
    return Effect(status, known - due, float("nan"), 0)
  body = json.dumps({"user": user, "k": 10, "cache": False, "fallback": False}).encode()
  asked = 0
  while clock() - known < _PATIENCE:
    asked += 1
    try:
      reply = await asker.request("POST", "/v1/recommend", body)
      if reply.status == 200:
        return Effect(status, known - due, clock() - known, asked)
    except (OSError, TimeoutError, ValueError):
      pass
    await asyncio.sleep(PAUSE)
  return Effect(status, known - due, float("nan"), asked)


def report(measured: Measured, rates: Rates, seconds: float) -> dict[str, Any]:
  """Figures of a load, as JSON.

  Returns:
    events_per_s, acknowledged; posts, refused, lost: batches, those that were not acknowledged, and
    those of which no recommendation knew in time; asks_per_s and answered, their share with an
    answer; post_ms, effect_ms and ask_ms: as `http_load.spread` gives them. An effect counts from
    the POST's answer to the recommendation's.
  """
  effects = measured.effects
  good = [one for one in effects if one.status == 202]
  answered = [one for one in measured.asked if one.status == 200]
  asks = len(measured.asked) + sum(one.asked for one in effects)
  return {
    "events_per_s": rates.batch * len(good) / seconds,
    "posts": len(effects),
    "refused": len(effects) - len(good),
    "lost": sum(bool(np.isnan(one.effect)) for one in good),
    "asks_per_s": asks / seconds,
    "answered": len(answered) / max(len(measured.asked), 1),
    "post_ms": spread([one.acknowledged for one in good]),
    "effect_ms": spread([one.effect for one in good if not np.isnan(one.effect)]),
    "ask_ms": spread([one.seconds for one in answered]),
  }


def in_words(figures: Mapping[str, Any]) -> str:
  """The figures of `report` in a line."""
  none = {"p50": float("nan"), "p99": float("nan"), "most": float("nan")}
  effect = figures["effect_ms"] or none
  post = figures["post_ms"] or none
  ask = figures["ask_ms"] or none
  return (
    f"{figures['events_per_s']:.0f} events/s acknowledged ({figures['refused']} of "
    f"{figures['posts']} batches refused), {figures['asks_per_s']:.0f} recommendations/s asked "
    f"({100 * figures['answered']:.1f} % answered); acknowledged after p50 {post['p50']:.0f}, p99 "
    f"{post['p99']:.0f} ms; from there to its effect p50 {effect['p50']:.0f}, p99 "
    f"{effect['p99']:.0f}, at most {effect['most']:.0f} ms, {figures['lost']} lost; "
    f"recommendations p50 {ask['p50']:.0f}, p99 {ask['p99']:.0f} ms"
  )
