"""An ad table and an event log, read from Parquet or CSV files into the schema's columns."""

import csv
import dataclasses
import os

import numpy as np

from gr4ad_jax.config import DataConfig
from gr4ad_jax.data import visits
from gr4ad_jax.data.checks import Cells, bad_cell, optional
from gr4ad_jax.data.forms import TEMPLATES
from gr4ad_jax.data.schema import AdTable, DataError, EventLog

AD_COLUMNS = ("ad_id", "text", "account_id")
AD_OPTIONAL = ("category", "conversion_type", "form", "price", "created", "vector")
EVENT_COLUMNS = ("user_id", "ad_id", "time")
EVENT_OPTIONAL = ("behavior", "value", "quantity", "request_id")


def read_file(path: str, required: tuple[str, ...], optional_columns: tuple[str, ...] = ()) -> dict[str, Cells]:
  """Columns of a .parquet or .csv file that are wanted, by name; CSV cells stay text ('0012' is not 12).

  Raises:
    DataError: an unreadable file, a column that is missing or stands there twice, no rows.
  """
  names = _column_names(path)
  if missing := [name for name in required if name not in names]:
    raise DataError(f"{path}: column '{missing[0]}' is missing; the file has {', '.join(names) or 'no columns'}")
  if twice := [name for name in (*required, *optional_columns) if names.count(name) > 1]:
    raise DataError(f"{path}: column '{twice[0]}' stands there twice")
  wanted = [name for name in (*required, *optional_columns) if name in names]
  table = _read_csv(path, wanted) if path.endswith(".csv") else _read_parquet(path, wanted)
  if not len(table):
    raise DataError(f"{path}: no rows")
  return {name: Cells(path, name, table[name]) for name in wanted}


def check_file(field: str, path: str) -> None:
  """Raises DataError where `path` (named `field` in the config) is unset, of another ending, or no file."""
  if not path:
    raise DataError(f"{field} is not set: name a .parquet or .csv file")
  if not path.endswith((".parquet", ".csv")):
    raise DataError(f"{path}: {field} must end in .parquet or .csv")
  if not os.path.isfile(path):
    raise DataError(f"{path}: no such file ({field})")


def source_files(data: DataConfig) -> dict[str, str]:
  """Paths of the ad table and the event log by field. Raises DataError as `check_file` does."""
  paths = {"ads_path": data.ads_path, "events_path": data.events_path}
  for field, path in paths.items():
    check_file(field, path)
  return paths


def constant(column: str, value: str, size: int) -> Cells:
  """A column of one text, for a file that need not have it."""
  return Cells("", column, optional("pyarrow").array([value] * size))


def one_line(texts: np.ndarray) -> np.ndarray:
  """[N] texts with every run of white space as one space, none at the ends."""
  return np.array([" ".join(text.split()) for text in texts], object)


def ad_table(cells: dict[str, Cells]) -> AdTable:
  """The ad table of checked columns (`AD_COLUMNS`, and any of `AD_OPTIONAL`), rows in file order.

  Runs of white space in `text` become one space.

  Raises:
    DataError: a bad cell, an ad that stands there twice, a form without a template (`data/forms.py`).
  """
  size = len(cells["ad_id"])
  ad_row, ad_id = cells["ad_id"].labels()
  if len(ad_id) < size:
    # First appearances are numbered 0, 1, …: the first row whose code is not new repeats an earlier one.
    row = int(np.argmax(ad_row != np.arange(size)))
    first = int(np.argmax(ad_row == ad_row[row]))
    ids = cells["ad_id"]
    raise bad_cell(ids.path, ids.column, row, ad_id[ad_row[row]], f"is already the ad of row {first + 1}")
  blank = np.full(size, "", object)
  words = {name: cells[name].text(allow_empty=True) if name in cells else blank for name in AD_OPTIONAL[:3]}
  if "form" in cells:
    _check_forms(cells["form"])
  return AdTable(
    ad_id=ad_id,
    text=one_line(cells["text"].text(allow_empty=True)),
    account_id=cells["account_id"].text(),
    price=cells["price"].numbers(np.nan) if "price" in cells else np.full(size, np.nan, np.float32),
    created=cells["created"].times(-1) if "created" in cells else np.full(size, -1, np.int64),
    vectors=cells["vector"].vectors() if "vector" in cells else None,
    **words,
  )


def _check_forms(form_cells: Cells) -> None:
  codes, values = form_cells.labels(allow_empty=True)
  unknown_N = np.fromiter((bool(value) and value not in TEMPLATES for value in values), bool, len(values))[codes]
  if unknown_N.any():
    row = int(np.argmax(unknown_N))
    problem = f"is not one of {', '.join(TEMPLATES)}, nor empty"
    raise bad_cell(form_cells.path, form_cells.column, row, values[codes[row]], problem)


@dataclasses.dataclass(frozen=True)
class EventRules:
  """How an event log is read: see the fields of the same names in `DataConfig`."""

  behaviors: tuple[str, ...]
  on_unknown_ad: str = "error"
  session_gap_minutes: float = 30.0


def event_log(cells: dict[str, Cells], ads: AdTable, rules: EventRules) -> tuple[EventLog, dict[str, int]]:
  """The event log of checked columns (`EVENT_COLUMNS`, and any of `EVENT_OPTIONAL`).

  Without `behavior` every event is of the deepest kind; `value` defaults to 0, `quantity` to 1; without `request_id`
  visits are cut at pauses.

  Returns:
    The log, and the rows set aside by reason.

  Raises:
    DataError: a bad cell, an ad that the table lacks (unless set aside), no event left.
  """
  size = len(cells["user_id"])
  user_E, user_id = cells["user_id"].labels()
  ad_E = rows_of(cells["ad_id"], ads, allow_unknown=rules.on_unknown_ad == "drop")
  columns = {
    "user": user_E,
    "ad": ad_E,
    "time": cells["time"].times(),
    "behavior": _depths(cells["behavior"], rules.behaviors) if "behavior" in cells else
                np.full(size, len(rules.behaviors) - 1, np.int8),
    "value": cells["value"].numbers(0) if "value" in cells else np.zeros(size, np.float32),
    "quantity": cells["quantity"].numbers(1) if "quantity" in cells else np.ones(size, np.float32),
  }
  if "request_id" in cells:
    columns["request"] = cells["request_id"].labels()[0]
  known_E = ad_E >= 0
  if not known_E.any():
    raise DataError(f"{cells['ad_id'].path}: no event is left, the ad table lacks the ads of all {size} rows")
  dropped = {} if known_E.all() else {"ad not in the ad table": int(size - known_E.sum())}
  columns = {name: column[known_E] for name, column in columns.items()}
  return visits.ordered_log(user_id, **columns, gap_seconds=60 * rules.session_gap_minutes), dropped


def rows_of(ad_cells: Cells, ads: AdTable, allow_unknown: bool = False) -> np.ndarray:
  """Ad-table row of each event, [E] int32; -1 for an ad that the table lacks, a DataError unless `allow_unknown`."""
  codes, values = ad_cells.labels()
  row_of = {ad: row for row, ad in enumerate(ads.ad_id)}
  row_E = np.fromiter((row_of.get(value, -1) for value in values), np.int32, len(values))[codes]
  if not allow_unknown and (row_E < 0).any():
    row = int(np.argmax(row_E < 0))
    raise bad_cell(ad_cells.path, ad_cells.column, row, values[codes[row]], "is not in the ad table")
  return row_E


def _depths(behavior_cells: Cells, behaviors: tuple[str, ...]) -> np.ndarray:
  """Depth of each event, [E] int8."""
  codes, values = behavior_cells.labels(allow_empty=True)
  depth_E = np.array([behaviors.index(value) if value in behaviors else -1 for value in values], np.int8)[codes]
  if (depth_E < 0).any():
    row = int(np.argmax(depth_E < 0))
    raise bad_cell(
      behavior_cells.path, "behavior", row, values[codes[row]], f"is not one of {', '.join(behaviors)}"
    )
  return depth_E


def _column_names(path: str) -> list[str]:
  """Names of the header or of the Parquet schema."""
  if path.endswith(".csv"):
    try:
      with open(path, newline="", encoding="utf-8-sig") as lines:
        return next(csv.reader(lines), [])
    except UnicodeDecodeError as error:
      raise DataError(f"{path}: not UTF-8 text") from error
  arrow = optional("pyarrow")
  try:
    return optional("pyarrow.parquet").read_schema(path).names
  except arrow.ArrowInvalid as error:
    raise DataError(f"{path}: not a readable Parquet file") from error


def _read_parquet(path: str, names: list[str]):
  arrow = optional("pyarrow")
  try:
    return optional("pyarrow.parquet").read_table(path, columns=names)
  except (arrow.ArrowInvalid, OSError) as error:
    raise DataError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error


def _read_csv(path: str, names: list[str]):
  arrow, arrow_csv = optional("pyarrow"), optional("pyarrow.csv")
  broken = []

  def note(row) -> str:
    broken.append(row)
    return "error"

  try:
    return arrow_csv.read_csv(
      path,
      read_options=arrow_csv.ReadOptions(use_threads=False),  # rows have numbers only when read in order
      parse_options=arrow_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
      convert_options=arrow_csv.ConvertOptions(
        include_columns=names, column_types=dict.fromkeys(names, arrow.string()), strings_can_be_null=False
      ),
    )
  except arrow.ArrowInvalid as error:
    if broken:
      row = broken[0]
      where = "" if row.number is None else f" row {row.number - 1}:"
      raise DataError(
        f"{path}:{where} {row.actual_columns} cells, the header has {row.expected_columns}"
      ) from error
    raise DataError(f"{path}: not a readable CSV file ({str(error).splitlines()[0]})") from error
