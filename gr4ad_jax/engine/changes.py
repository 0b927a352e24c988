"""What a server may be told, and what it tells of ads, advertisers and users."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gr4ad_jax.answering.accounts import Accounts
from gr4ad_jax.answering.computing import Computer
from gr4ad_jax.answering.living import Living
from gr4ad_jax.answering.messages import Query
from gr4ad_jax.answering.terms import Ledger
from gr4ad_jax.catalogue.catalog import AdCatalog
from gr4ad_jax.engine.batcher import Closed, Overloaded

_log = logging.getLogger(__name__)


class Changes:
  """The part of an engine that is not asked for recommendations. Safe for threads.

  Attributes:
    catalog: the ads.
    living: events, and what they make known of users.
  """

  catalog: AdCatalog
  living: Living
  _accounts: Accounts
  _ledger: Ledger
  _computer: Computer
  _closing: threading.Event

  def put_ad(self, ad_id: str, fields: Mapping[str, Any]) -> str:
    """Adds or changes an ad; on disk when this returns, and generable from the next batch on.

    Returns:
      'created' or 'updated'.

    Raises:
      DataError: a field that is not allowed.
      Overloaded: the change could not be written; Closed after `close`.
    """

    def put() -> str:
      result = self.catalog.put(ad_id, fields)
      # After the change is on disk here: others must not have an ad that this server lacks.
      self.living.ads.tell(ad_id)
      return result

    return self._written(put)

  def delete_ad(self, ad_id: str) -> bool:
    """Removes an ad; on disk when this returns. Returns whether there was one."""

    def delete() -> bool:
      there = self.catalog.delete(ad_id)
      if there:
        self.living.ads.tell(ad_id)
      return there

    return self._written(delete)

  def _written(self, change: Callable, *arguments: Any) -> Any:
    if self._closing.is_set():
      raise Closed("the server is shutting down")
    try:
      return change(*arguments)
    except OSError as error:
      _log.error("a change could not be written: %s", error)
      raise Overloaded("the change could not be written") from error

  def put_account(self, account: str, daily_budget: float | None) -> dict[str, Any]:
    """Gives an account a daily budget, None: no limit. On disk when this returns.

    Returns:
      As `account`.

    Raises:
      Overloaded: it could not be written; Closed after `close`.
    """
    self._written(self._accounts.put, account, daily_budget)
    self._ledger.set_budget(account, daily_budget)
    return self.account(account)

  def account(self, account: str) -> dict[str, Any]:
    """An account's budget, and what it has spent today."""
    return {"account_id": account} | self._ledger.account(account)

  def get_ad(self, ad_id: str) -> dict[str, Any] | None:
    """An ad's fields, codes and status."""
    return self.catalog.get(ad_id)

  def post_events(self, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Takes events, see `Living.post`; on disk when this returns.

    Raises:
      DataError: an event that is not allowed.
      Overloaded: they could not be written; Closed after `close`.
    """
    return self._written(self.living.post, events)

  def delete_user(self, user: str) -> dict[str, Any]:
    """Leaves nothing of a user, see `Living.erase`. Raises UnknownUser; as `post_events` too."""
    return self._written(self.living.erase, user)

  def users(self, prefix: str, limit: int) -> list[str]:
    """User ids that begin with a prefix, in order."""
    return self.living.users(prefix, limit)

  def user(self, user: str, limit: int) -> dict[str, Any]:
    """What is known of a user (see `Living.user`), with the latest events. Raises UnknownUser."""
    return self.living.user(user) | {"latest": self.history(user, limit)}

  def history(self, user: str, limit: int) -> list[dict[str, Any]]:
    """A user's latest events, latest first. Raises UnknownUser."""
    # The moment is of no use here: all that is known of the user is shown.
    log, _ = self._computer.log_of(Query(user=user))
    events = []
    # Visits may overlap, so the log's order is not that of time.
    for at in np.argsort(log.time, kind="stable")[::-1][:limit].tolist():
      ad = self.catalog.ad(int(log.ad[at]))
      numbers = {name: float(getattr(log, name)[at]) for name in ("value", "quantity")}
      behavior = self._computer.behaviors[log.behavior[at]]
      events.append(
        {"ad_id": ad.ad_id, "text": ad.text, "time": int(log.time[at]), "behavior": behavior}
        | numbers
      )
    return events
