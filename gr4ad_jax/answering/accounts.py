"""The terms of advertisers on disk: one file, small, written whole at each change."""

import os
import threading

from gr4ad_jax import files
from gr4ad_jax.data.schema import DataError

FILE = "accounts.json"  # of the `live` folder


class Accounts:
  """Budgets by account. Make one with `open`. Safe for threads.

  Attributes:
    budgets: account -> money a day.
  """

  def __init__(self, path: str, budgets: dict[str, float]):
    self._path = path
    self._lock = threading.Lock()
    self.budgets = budgets

  @classmethod
  def open(cls, directory: str) -> "Accounts":
    """Reads the file of a folder; without one there are no budgets.

    Raises:
      DataError: the file holds something else.
    """
    path = os.path.join(directory, FILE)
    if not os.path.exists(path):
      return cls(path, {})
    budgets = files.load_json(path)
    # `type` and not `isinstance`: True is an int to Python, and no budget.
    good = isinstance(budgets, dict) and all(
      type(budget) in (int, float) and budget > 0 for budget in budgets.values()
    )
    if not good:
      raise DataError(f"{path}: account -> daily budget above 0 is expected")
    return cls(path, {account: float(budget) for account, budget in budgets.items()})

  def put(self, account: str, daily_budget: float | None) -> None:
    """Gives an account a budget, None: no limit; on disk when this returns. Raises OSError."""
    with self._lock:
      # A new mapping: readers keep the old one, which never changes.
      budgets = {name: budget for name, budget in self.budgets.items() if name != account}
      if daily_budget is not None:
        budgets[account] = daily_budget
      files.write_json(self._path, budgets, summed=False)
      # After the file, so that memory never has what the disk lacks.
      self.budgets = budgets
