"""Text in Arrow columns: of any type, checked to be UTF-8; and whole numbers that are written as
text.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gr4ad_jax.data.extras import optional
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.reading import part_types


def decoded(array: Any, bad: Callable[[int, Any, str], DataError]) -> Any:
  """Text of any Arrow type as large strings, whose bytes are UTF-8; other arrays as they are.

  Args:
    array: the column.
    bad: makes the error of a cell, of its row, its value and what is wrong with it.
  """
  arrow = optional("pyarrow")
  kind = array.type
  types = arrow.types
  texts = (types.is_string, types.is_large_string, types.is_string_view)
  binaries = (
    types.is_binary,
    types.is_large_binary,
    types.is_binary_view,
    types.is_fixed_size_binary,
  )
  if not any(is_kind(kind) for is_kind in (*texts, *binaries)):
    return array
  try:
    if types.is_fixed_size_binary(kind):
      array = array.cast(arrow.binary())
    array = array.cast(arrow.large_string())
    # Only now the bytes are looked at.
    array.validate(full=True)  # Parquet gives texts unchecked
    return array
  except arrow.ArrowInvalid:
    # The slow way, to name the first row that is wrong.
    for row, value in enumerate(array.cast(arrow.large_binary()).to_pylist()):
      if value is not None and not _is_utf8(value):
        hint = "; of a UUID, store the text" if len(value) == 16 else ""
        raise bad(row, value, f"is not UTF-8{hint}") from None
    raise


def whole(array: Any, kinds: Sequence[Any], refuse: Callable[[np.ndarray, str], None]) -> Any:
  """Whole numbers of a decimal or floating column, as an Arrow array of text; NaN counts as null.

  Warehouses unload whole numbers as decimals, and pandas makes floats of a column that lacks
  some.

  Args:
    array: the column.
    kinds: Arrow types of its parts: the narrowest tells which whole numbers it can hold.
    refuse: raises for the first bad cell.
  """
  arrow = optional("pyarrow")
  is_float = arrow.types.is_floating(array.type)
  # The least exact type of any part decides what can be trusted.
  most, kind = min((part_types.whole_below(kind), str(kind)) for kind in kinds)
  # Arrow encodes neither 16-bit floats nor decimals of 32 and 64 bits.
  narrow = {"halffloat": arrow.float32()}.get(str(array.type))
  if arrow.types.is_decimal(array.type) and array.type.bit_width < 128:
    narrow = arrow.decimal128(array.type.precision, array.type.scale)
  encoded = (array.cast(narrow) if narrow is not None else array).dictionary_encode()
  # NaN is the only value that differs from itself.
  values = [None if value != value else value for value in encoded.dictionary.to_pylist()]
  texts = []
  broken = []
  lost = []
  for value in values:
    # Not `% 1`: the remainder of a decimal is exact to 28 digits only.
    is_whole = value is None or (
      value.is_integer() if is_float else value == value.to_integral_value()
    )
    texts.append(str(int(value)) if value is not None and is_whole else None)
    broken.append(not is_whole)
    lost.append(is_float and value is not None and abs(value) >= most)
  # One more code, past the last value, is that of empty cells.
  codes = encoded.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)
  for bad, problem in (
    (broken, "is no whole number; text or whole numbers are needed"),
    (lost, f"lies beyond the whole numbers that {kind} can tell apart; store text"),
  ):
    refuse(np.array([*bad, False])[codes], problem)
  return arrow.array([*texts, None], arrow.large_string()).take(arrow.array(codes))


def encoded(text: Any) -> tuple[np.ndarray, np.ndarray]:
  """(codes [E] int32, distinct values as [V] str objects in order of first appearance) of an
  Arrow text array.
  """
  encoded = text.dictionary_encode()
  codes = encoded.indices.to_numpy()
  values = encoded.dictionary.to_numpy(zero_copy_only=False)
  return codes.astype(np.int32, copy=False), values


def _is_utf8(value: bytes) -> bool:
  try:
    value.decode()
  except UnicodeDecodeError:
    return False
  return True
