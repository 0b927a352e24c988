"""An engine without a model: the interface that the HTTP app needs, answered from a dict."""

import types

from gr4ad_jax.answering.messages import Answer, UnknownUser
from gr4ad_jax.config import Config
from gr4ad_jax.data.schema import DataError


class FakeEngine:
  """Twelve ads, three users. `raises`, when set, is what a recommendation raises."""

  def __init__(self, config: Config | None = None):
    self.config, self.ready, self.raises, self.queries = config or Config(), True, None, []
    self.ads = {
      f"ad{n}": self._ad(f"ad{n}", text=f"thing {n}", account_id="shop") for n in range(12)
    }
    self.budgets = {}
    self.posted, self.refuses = set(), None
    self.histories = {f"u{n}": [self._event(f"ad{m}") for m in range(n + 1)] for n in range(3)}
    self.metrics = types.SimpleNamespace(
      text=lambda: b"# nothing yet\n", content_type="text/plain; version=0.0.4"
    )

  @staticmethod
  def _event(ad_id):
    return {
      "ad_id": ad_id,
      "text": "a thing",
      "time": 5,
      "behavior": "purchase",
      "value": 1.5,
      "quantity": 1.0,
    }

  @staticmethod
  def _ad(ad_id, **fields):
    plain = dict.fromkeys(("text", "account_id", "category", "conversion_type", "form"), "")
    return (
      plain
      | {"ad_id": ad_id, "price": None, "created": None, "status": "active", "codes": [1, 2, 3]}
      | fields
    )

  async def recommend_async(self, query):
    """The first k ads, whoever asks."""
    self.queries.append(query)
    if self.raises:
      raise self.raises
    if query.user is not None and query.user not in self.histories:
      raise UnknownUser(query.user)
    ids = [e if isinstance(e, str) else e["ad_id"] for e in query.history or ()]
    if unknown := [ad for ad in ids if ad not in self.ads]:
      raise DataError(f"history, entry 1: ad_id {unknown[0]!r} is not in the ad table")
    shown = ("ad_id", "text", "account_id", "codes")
    had = ids or [event["ad_id"] for event in self.histories.get(query.user, ())]
    found = [
      {name: ad[name] for name in shown}
      | {"log_p": -1.0 - n, "score": 3.0 - n, "ecpm": 2.0, "seen": ad["ad_id"] in had}
      for n, ad in enumerate(self.ads.values())
    ]
    if query.seen_ads == "masked":
      found = [ad for ad in found if not ad["seen"]]
    tree = tuple(
      ({"codes": [1, 2, 3][: t + 1], "log_p": -1.0, "beams": 12, "ecpm": None},) for t in range(3)
    )
    return Answer("model", 7, (8, 8, 8), tuple(found[: query.k]), tree if query.explain else None)

  def put_ad(self, ad_id, fields):
    """Creates or updates."""
    result = "updated" if ad_id in self.ads else "created"
    self.ads[ad_id] = self.ads.get(ad_id, self._ad(ad_id)) | {
      k: v for k, v in fields.items() if k != "vector"
    }
    return result

  def delete_ad(self, ad_id):
    """Whether it was there."""
    return self.ads.pop(ad_id, None) is not None

  def get_ad(self, ad_id):
    """The ad, or None."""
    return self.ads.get(ad_id)

  def put_account(self, account, daily_budget):
    """Keeps the budget."""
    self.budgets[account] = daily_budget
    return self.account(account)

  def account(self, account):
    """Nothing is ever spent."""
    budget = self.budgets.get(account)
    planned = None if budget is None else budget / 2
    told = {"daily_budget": budget, "spent_today": 0.0, "planned": planned}
    return {"account_id": account} | told

  def post_events(self, events):
    """Takes what it did not have; one event of an unknown ad waits."""
    if self.refuses:
      raise self.refuses
    ids = {event["event_id"] for event in events}
    aside = [e["event_id"] for e in events if e["ad_id"] not in self.ads]
    repeated = len(events) - len(ids - self.posted)
    self.posted |= ids
    return {
      "accepted": len(events) - repeated,
      "repeated": repeated,
      "set_aside": [{"event_id": event_id, "reason": "unknown"} for event_id in aside],
    }

  def delete_user(self, user):
    """Forgets a user."""
    if self.refuses:
      raise self.refuses
    if user not in self.histories:
      raise UnknownUser(user)
    return {"user": user, "records": len(self.histories.pop(user))}

  def user(self, user, limit):
    """A user's numbers."""
    latest = self.history(user, limit)
    count = len(self.histories[user])
    told = {"user": user, "events": count, "visits": 1, "first_time": 5, "last_time": 5}
    return told | {"value": 1.5 * count, "latest": latest}

  def users(self, prefix, limit):
    """User ids with a prefix."""
    return [user for user in self.histories if user.startswith(prefix)][:limit]

  def history(self, user, limit):
    """Events of a user."""
    if user not in self.histories:
      raise UnknownUser(user)
    return self.histories[user][:limit]

  def stats(self):
    """As the engine's."""
    point = {
      "time": 1_700_000_000, "requests": 5, "answered": 4, "refused": 1, "fallback": 0,
      "cache_hit_rate": 0.25, "p50_ms": 11.0, "p99_ms": 20.5, "queued": 2, "utilisation": 0.4,
      "beams": [8, 8, 8], "events": 3,
    }  # fmt: skip
    return {
      "target_ms": 100.0, "beams": [8, 8, 8], "schedules": [[4, 4, 4], [8, 8, 8]], "checkpoint": 7,
      "ads": 12, "points": [point],
    }  # fmt: skip
