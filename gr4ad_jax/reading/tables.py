"""An ad table and an event log: columns of files (`column_files.read_file`) into the schema's
columns.
"""

import dataclasses
import unicodedata

import numpy as np

from gr4ad_jax.config import DataConfig
from gr4ad_jax.data import visits
from gr4ad_jax.data.extras import optional
from gr4ad_jax.data.forms import TEMPLATES
from gr4ad_jax.data.schema import AdTable, DataError, EventLog
from gr4ad_jax.reading import returns
from gr4ad_jax.reading.checks import Cells
from gr4ad_jax.reading.column_files import check_file

AD_COLUMNS = ("ad_id", "text", "account_id")
AD_OPTIONAL = ("category", "conversion_type", "form", "price", "created", "vector")
EVENT_COLUMNS = ("user_id", "ad_id", "time")
UNKNOWN_AD = "ad not in the ad table"  # why a row is set aside
EVENT_OPTIONAL = ("behavior", "value", "quantity", "request_id")


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
    DataError: a bad cell, an ad that stands there twice, a form without a template
      (`data/forms.py`).
  """
  size = len(cells["ad_id"])
  ad_id = unique_ids(cells["ad_id"])
  blank = np.full(size, "", object)
  words = {
    name: cells[name].text(allow_empty=True) if name in cells else blank for name in AD_OPTIONAL[:3]
  }
  account_row, account_id = cells["account_id"].ids()
  # Checked before the form is read as text, so that the message names the row.
  if "form" in cells:
    _check_forms(cells["form"])
  return AdTable(
    ad_id=ad_id,
    text=one_line(cells["text"].text(allow_empty=True)),
    account_id=account_id[account_row],
    price=cells["price"].numbers(np.nan) if "price" in cells else np.full(size, np.nan, np.float32),
    created=cells["created"].times(-1) if "created" in cells else np.full(size, -1, np.int64),
    vectors=cells["vector"].vectors() if "vector" in cells else None,
    **words,
  )


def unique_ids(cells: Cells) -> np.ndarray:
  """The ids of a column, [N] str. Raises DataError where one stands there twice."""
  code_N, ids = cells.ids()
  if len(ids) < len(cells):
    # First appearances are numbered 0, 1, 2, …, so without a repeat a row's code is its own number.
    # The first row where it is not repeats an earlier one.
    row = int(np.argmax(code_N != np.arange(len(cells))))
    first = int(np.argmax(code_N == code_N[row]))
    raise cells.bad(row, ids[code_N[row]], f"is already the ad of {cells.row_name(first, row)}")
  return ids


def _check_forms(form_cells: Cells) -> None:
  codes, values = form_cells.labels(allow_empty=True)
  unknown_N = np.fromiter(
    (bool(value) and value not in TEMPLATES for value in values), bool, len(values)
  )[codes]
  if unknown_N.any():
    row = int(np.argmax(unknown_N))
    problem = f"is not one of {', '.join(TEMPLATES)}, nor empty"
    raise form_cells.bad(row, values[codes[row]], problem)


@dataclasses.dataclass(frozen=True)
class EventRules:
  """How an event log is read: see the fields of the same names in `DataConfig`."""

  behaviors: tuple[str, ...]
  on_unknown_ad: str = "error"
  session_gap_minutes: float = 30.0


def event_log(
  cells: dict[str, Cells], ads: AdTable, rules: EventRules
) -> tuple[EventLog, dict[str, int]]:
  """The event log of checked columns (`EVENT_COLUMNS`, and any of `EVENT_OPTIONAL`).

  Without `behavior` every event is of the deepest kind; `value` defaults to 0, `quantity` to 1;
  without `request_id` visits are cut at pauses. An event of the deepest kind with a `value` below 0
  takes back, and may have a `quantity` below 0.

  Returns:
    The log, and the rows set aside by reason.

  Raises:
    DataError: a bad cell, an ad that the table lacks (unless set aside), no event left.
  """
  user_id, columns, known_E = event_columns(cells, ads, rules)
  if not known_E.any():
    raise DataError(
      f"{cells['ad_id'].path}: no event is left, the ad table lacks the ads of all "
      f"{len(known_E)} rows"
    )
  dropped = {} if known_E.all() else {UNKNOWN_AD: int((~known_E).sum())}
  return visits.ordered_log(user_id, **columns, gap_seconds=60 * rules.session_gap_minutes), dropped


def event_columns(
  cells: dict[str, Cells], ads: AdTable, rules: EventRules
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
  """The events of checked columns, in the order of the file; see `event_log`.

  Returns:
    The ids of users [U] str; the columns of `visits.ordered_log` by name, of the rows whose ad the
    table has; and which rows these are, [rows] bool. `request` is among the columns where the file
    has `request_id`: a number for each distinct one.

  Raises:
    DataError: a bad cell, an ad that the table lacks (unless set aside).
  """
  size = len(cells["user_id"])
  user_E, user_id = cells["user_id"].ids()
  ad_E = rows_of(cells["ad_id"], ads, allow_unknown=rules.on_unknown_ad == "drop")
  columns = {
    "user": user_E,
    "ad": ad_E,
    "time": cells["time"].times(),
    "behavior": _depths(cells["behavior"], rules.behaviors)
    if "behavior" in cells
    else np.full(size, len(rules.behaviors) - 1, np.int8),
  }
  columns |= _amounts(cells, columns["behavior"], rules.behaviors)
  if "request_id" in cells:
    columns["request"] = cells["request_id"].ids()[0]
  known_E = ad_E >= 0
  columns = {name: column[known_E] for name, column in columns.items()}
  return user_id, columns, known_E


def _amounts(
  cells: dict[str, Cells], depth_E: np.ndarray, behaviors: tuple[str, ...]
) -> dict[str, np.ndarray]:
  """Value and quantity of each event, [E] float32; below 0 only where something is taken back."""
  value_E = np.zeros(len(depth_E), np.float32)
  if "value" in cells:
    value_E = cells["value"].numbers(0, signed=True)
    wrong_E = returns.is_wrong_value(value_E, depth_E, behaviors)
    cells["value"].refuse(wrong_E, returns.value_problem(behaviors))
  quantity_E = np.ones(len(depth_E), np.float32)
  if "quantity" in cells:
    quantity_E = cells["quantity"].numbers(1, signed=True)
    wrong_E = returns.is_wrong_quantity(value_E, quantity_E)
    cells["quantity"].refuse(wrong_E, returns.QUANTITY_PROBLEM)
  return {"value": value_E, "quantity": quantity_E}


def rows_of(ad_cells: Cells, ads: AdTable, allow_unknown: bool = False) -> np.ndarray:
  """Ad-table row of each event, [E] int32; -1 for an ad that the table lacks, a DataError unless
  `allow_unknown`.
  """
  codes, values = ad_cells.ids()
  # Ids are looked up once each, and rows take their answers.
  row_of = ads.row_of
  row_E = np.fromiter((row_of.get(value, -1) for value in values), np.int32, len(values))[codes]
  if not allow_unknown and (row_E < 0).any():
    row = int(np.argmax(row_E < 0))
    raise ad_cells.bad(
      row, values[codes[row]], f"is not in the ad table{_nearest(values[codes[row]], ads)}"
    )
  return row_E


def _nearest(ad_id: str, ads: AdTable) -> str:
  """What may be meant by an ad id that the table lacks: one that differs in what programs change
  unasked.
  """

  # What programs change without being asked: case, width, leading zeros, a ".0".
  def plain(name: str) -> str:
    name = unicodedata.normalize("NFKC", name).casefold().strip()
    return name.removesuffix(".0").lstrip("0") or "0"

  found = next((str(other) for other in ads.ad_id if plain(other) == plain(ad_id)), None)
  return "" if found is None else f", which has {found!r}"


def _depths(behavior_cells: Cells, behaviors: tuple[str, ...]) -> np.ndarray:
  """Depth of each event, [E] int8."""
  codes, values = behavior_cells.labels(allow_empty=True)
  # White space around a word is left away, as around an id.
  depths = [
    behaviors.index(word) if (word := value.strip()) in behaviors else -1 for value in values
  ]
  depth_E = np.array(depths, np.int8)[codes]
  if (depth_E < 0).any():
    row = int(np.argmax(depth_E < 0))
    raise behavior_cells.bad(row, values[codes[row]], f"is not one of {', '.join(behaviors)}")
  return depth_E
