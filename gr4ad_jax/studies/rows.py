"""Rows of an ablation's table by their names."""

from collections.abc import Iterable, Sequence
from typing import Any

from gr4ad_jax.config import ConfigError


def chosen(rows: Sequence[Any], names: Iterable[str], always: str) -> tuple[Any, ...]:
  """Rows by `name`, in the table's order.

  Args:
    rows: all that there are.
    names: of those that are asked for.
    always: name of the row that is among them in any case.

  Raises:
    ConfigError: a row that there is none of.
  """
  names = set(names) | {always}
  unknown = names - {row.name for row in rows}
  if unknown:
    known = ", ".join(row.name for row in rows)
    raise ConfigError(f"--rows={sorted(unknown)[0]} is not allowed: any of {known}")
  return tuple(row for row in rows if row.name in names)
