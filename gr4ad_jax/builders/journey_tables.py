"""How the tables beside Complete Journey's transactions are read: numbers, by Arrow."""

import numpy as np

from gr4ad_jax.data.extras import optional
from gr4ad_jax.data.schema import DataError

_TIMES = ("transaction_timestamp", "redemption_date")
_WORDS = ("display_location", "mailer_location")


def columns(path: str, *names: str):
  """Columns of a Parquet file, as an Arrow table: moments, the two locations as text, and else
  whole numbers.

  Raises:
    DataError: a column is missing or of another type, or it is no whole Parquet file.
  """
  parquet = optional("pyarrow.parquet")
  try:
    there = parquet.read_schema(path).names
  # A file that was cut short has no footer.
  except (OSError, optional("pyarrow").ArrowInvalid) as error:
    raise DataError(f"{path}: no whole Parquet file ({' '.join(str(error).split())})") from error
  for name in names:
    if name not in there:
      raise DataError(f"{path}: column '{name}' is missing")
  table = parquet.read_table(path, columns=list(names))
  types = optional("pyarrow.types")
  for name in names:
    kind = table[name].type
    if name in _TIMES:
      wanted = "timestamps are"
      right = types.is_timestamp(kind)
    elif name in _WORDS:
      wanted = "text is"
      right = types.is_string(kind) or types.is_large_string(kind)
    else:
      wanted = "whole numbers are"
      # A null among whole numbers would make floats of all of them.
      right = types.is_integer(kind) and not table[name].null_count
    if not right:
      raise DataError(f"{path}: column '{name}' holds {kind} or empty cells: {wanted} needed")
  return table


def ids_as_numbers(ids: np.ndarray, name: str) -> np.ndarray:
  """Ids of a column as int64. Raises DataError for one that is no whole number."""
  try:
    return ids.astype(np.int64)
  except ValueError as error:
    raise DataError(f"column '{name}': whole numbers are needed ({error})") from error


def seconds(column) -> np.ndarray:
  """Unix seconds of a column of timestamps, [E] int64."""
  return column.to_numpy().astype("datetime64[s]").astype(np.int64)


def numbers_among(value_E: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Where values stand in an array without repeats, in any order, and whether they do."""
  if not len(among):
    return np.zeros(len(value_E), np.int64), np.zeros(len(value_E), bool)
  # Sorted once, so that any number of values is looked up by bisection.
  order = np.argsort(among, kind="stable")
  at = np.minimum(np.searchsorted(among[order], value_E), len(among) - 1)
  return order[at], among[order][at] == value_E
