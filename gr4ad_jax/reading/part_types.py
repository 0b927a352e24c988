"""One type for a column whose parts store it in several.

Writers choose the type of each part by what is in it: pandas makes floats of whole numbers where
one is missing, Spark and DuckDB narrow integers and dictionaries. Parts are joined where a type
holds every value of each; text and numbers never are, as '0012' is not 12.
"""

import uuid
from typing import Any

from gr4ad_jax.data.extras import optional

MOST_DIGITS = 76  # of an Arrow decimal
_UNITS = ("s", "ms", "us", "ns")  # of moments, coarse ones first


def plain(column: Any) -> Any:
  """An Arrow array as what it says, however it is stored: no dictionaries, text of one type, UUIDs
  as their text.
  """
  arrow = optional("pyarrow")
  types = arrow.types
  if types.is_dictionary(column.type):
    column = column.cast(column.type.value_type)
  if isinstance(column.type, arrow.BaseExtensionType):
    is_uuid = column.type.extension_name == "arrow.uuid"
    column = column.cast(column.type.storage_type)
    column = _uuid_texts(column) if is_uuid else column
  if types.is_string(column.type) or types.is_string_view(column.type):
    column = column.cast(arrow.large_string())
  return column


def joined(columns: list[Any]) -> Any | None:
  """The `plain` chunked arrays of one column's parts as one; None where no type holds all of them.

  NaN becomes null where another part has no NaN to say "empty" with.
  """
  arrow = optional("pyarrow")
  kinds = list(dict.fromkeys(c.type for c in columns if not arrow.types.is_null(c.type)))
  # One type, or empty parts alone: nothing has to be decided.
  if len(kinds) < 2:
    kind = kinds[0] if kinds else columns[0].type
    return _chunked([column.cast(kind) for column in columns], kind)
  # The first type that holds every part without a change.
  for target in _targets(kinds):
    cast = [_cast(column, target) for column in columns]
    if all(column is not None for column in cast):
      return _chunked(cast, target)
  return None


def whole_below(kind: Any) -> int:
  """From here on two whole numbers have one value of a floating type: in float64 2**53 + 1 is
  2**53.
  """
  return {"halffloat": 2**11, "float": 2**24}.get(str(kind), 2**53)


def _chunked(columns: list[Any], kind: Any) -> Any:
  arrow = optional("pyarrow")
  return arrow.chunked_array([chunk for column in columns for chunk in column.chunks], kind)


def _targets(kinds: list[Any]) -> list[Any]:
  """Types that may hold the values of several, to be tried in this order."""
  arrow = optional("pyarrow")
  types = arrow.types
  if all(types.is_large_string(kind) or _is_binary(kind) for kind in kinds):
    return [arrow.large_binary()]
  if all(types.is_timestamp(kind) or types.is_date(kind) for kind in kinds):
    # Moments without a zone are UTC, as everywhere here, so zones change nothing.
    units = [kind.unit for kind in kinds if types.is_timestamp(kind)]
    # The finest unit, so that no moment is cut; dates need milliseconds at least.
    return [arrow.timestamp(max([*units, "ms"], key=_UNITS.index))]
  if all(_is_list(kind) for kind in kinds):
    inner = list(dict.fromkeys(kind.value_type for kind in kinds))
    return [arrow.large_list(kind) for kind in (inner if len(inner) == 1 else _targets(inner))]
  if all(_is_number(kind) for kind in kinds):
    decimals = [kind for kind in kinds if types.is_decimal(kind)]
    scale = max((kind.scale for kind in decimals), default=0)
    exact = [arrow.decimal256(MOST_DIGITS, scale)] if decimals else []
    # Whole numbers first, since floats hold them only up to 2^53.
    return [arrow.int64(), arrow.uint64(), *exact, arrow.float64()]
  return []


def _cast(column: Any, target: Any) -> Any | None:
  """A column in another type, None where that would change a value."""
  arrow = optional("pyarrow")
  types = arrow.types
  compute = optional("pyarrow.compute")
  kind = column.type
  try:
    if types.is_floating(kind) and not types.is_floating(target):
      if types.is_decimal(target):
        return None  # Arrow rounds here
      if types.is_float16(kind):
        column = column.cast(arrow.float32())  # Arrow compares no 16-bit floats
      # NaN is an empty cell here, and other types have no NaN.
      column = compute.if_else(compute.is_nan(column), None, column)
      most = compute.max(compute.abs(column)).as_py()
      # Beyond that two whole numbers may have become one float already.
      if most is not None and most >= whole_below(kind):
        return None
    if types.is_decimal(kind):
      # Arrow rounds here, too, so there must be a way back.
      column = column.cast(arrow.decimal256(MOST_DIGITS, kind.scale))
      cast = column.cast(target)
      return cast if cast.cast(column.type).equals(column) else None
    return column.cast(target)
  except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError):
    return None


def _uuid_texts(column: Any) -> Any:
  """UUIDs of 16 bytes as the text that everyone writes them as."""
  arrow = optional("pyarrow")
  texts = [None if value is None else str(uuid.UUID(bytes=value)) for value in column.to_pylist()]
  return arrow.chunked_array([arrow.array(texts, arrow.large_string())])


def _is_binary(kind: Any) -> bool:
  types = optional("pyarrow").types
  tests = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
  return any(test(kind) for test in tests)


def _is_list(kind: Any) -> bool:
  types = optional("pyarrow").types
  tests = (types.is_list, types.is_large_list, types.is_fixed_size_list)
  return any(test(kind) for test in tests)


def _is_number(kind: Any) -> bool:
  types = optional("pyarrow").types
  return any(test(kind) for test in (types.is_integer, types.is_floating, types.is_decimal))
