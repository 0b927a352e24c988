"""How the tables beside Complete Journey's transactions are read: numbers, by Arrow."""

import numpy as np

from gr4ad_jax.data.extras import optional
from gr4ad_jax.data.schema import DataError


def columns(path: str, *names: str):
  """Columns of a Parquet file, as an Arrow table.

  Raises:
    DataError: a column is missing, or it is no whole Parquet file.
  """
  parquet = optional("pyarrow.parquet")
  try:
    there = parquet.read_schema(path).names
  except (OSError, optional("pyarrow").ArrowInvalid) as error:
    raise DataError(f"{path}: no whole Parquet file ({' '.join(str(error).split())})") from error
  for name in names:
    if name not in there:
      raise DataError(f"{path}: column '{name}' is missing")
  return parquet.read_table(path, columns=list(names))


def seconds(column) -> np.ndarray:
  """Unix seconds of a column of timestamps, [E] int64."""
  return column.to_numpy().astype("datetime64[s]").astype(np.int64)


def numbers_among(value_E: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Where values stand in an array without repeats, in any order, and whether they do."""
  if not len(among):
    return np.zeros(len(value_E), np.int64), np.zeros(len(value_E), bool)
  order = np.argsort(among, kind="stable")
  at = np.minimum(np.searchsorted(among[order], value_E), len(among) - 1)
  return order[at], among[order][at] == value_E
