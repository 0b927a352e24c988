"""Answers that need no search: kept ones, popular ads; and what the ledger makes of them."""

import concurrent.futures
import dataclasses

from gr4ad_jax.answering import answers
from gr4ad_jax.answering.computing import Computer
from gr4ad_jax.answering.fallback import PopularLists
from gr4ad_jax.answering.messages import Answer, Query
from gr4ad_jax.catalogue.catalog import AdCatalog

_RESERVE = 50  # popular ads beyond those asked for, where some may be used up meanwhile


class Showing:
  """Safe to call from several threads.

  Args:
    catalog: the ads.
    computer: knows histories, wishes and the ledger.
    lists: of popular ads.
  """

  def __init__(self, catalog: AdCatalog, computer: Computer, lists: PopularLists):
    self._catalog = catalog
    self._computer = computer
    self._lists = lists

  def again(self, query: Query, kept: Answer) -> Answer | None:
    """A kept answer, counted once more; None where one of its ads may not be shown any more."""
    rows = (self._catalog.row(ad["ad_id"]) for ad in kept.ads)
    entries = [
      (row, ad["log_p"], ad["score"], ad["ecpm"]) for row, ad in zip(rows, kept.ads, strict=True)
    ]
    # All or none: a list with a hole would not be the answer that was kept.
    receipt = self._computer.ledger.take_all(query.user, entries)
    return None if receipt is None else dataclasses.replace(kept, receipt=receipt)

  def forgo(self, future: concurrent.futures.Future | None) -> None:
    """Takes back what is counted for an answer that comes too late to be given."""

    def over(future: concurrent.futures.Future) -> None:
      # An answer that nobody is given is not shown to anybody.
      if not future.cancelled() and future.exception() is None and future.result().receipt:
        self._computer.ledger.give_back(future.result().receipt)

    if future is not None:
      future.add_done_callback(over)

  def popular(self, query: Query, step: int) -> Answer | None:
    """The popular ads that a query may be answered with, as of a checkpoint; None: there is none.

    Raises:
      DataError, UnknownUser: as `Computer.log_of` and `Computer.left_out`.
    """
    log, now = self._computer.log_of(query)
    left_out = self._computer.left_out(query, log, now)
    ledger = self._computer.ledger
    # Rows are looked up one by one below, so they become a set.
    hidden = set(left_out.row_E.tolist())
    allowed_N = left_out.only[0]

    def may_be_shown(row: int) -> bool:
      # Ads that came after the set was made are in no set.
      allowed = allowed_N is None or (row < len(allowed_N) and allowed_N[row])
      return allowed and row not in hidden and self._catalog.is_active(row)

    receipt = None
    # Others may be counted meanwhile, so some ads are in reserve.
    if ledger.counts:
      found = self._lists.best(log, query.k + _RESERVE, may_be_shown)
      # The lists are in order already, so the first k that may still be shown are the best.
      found, receipt = ledger.take(query.user, found, lambda entries: entries[: query.k])
    else:
      found = self._lists.best(log, query.k, may_be_shown)
    seen = set(log.ad.tolist())
    ads = tuple(answers.ad_entry(self._catalog, seen, *entry) for entry in found)
    return Answer("fallback", step, (), ads, receipt=receipt, now=now) if ads else None
