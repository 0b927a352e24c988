"""Each kind of bad input of a CSV pair, by its message."""

import os

import pytest

from gr4ad_jax.builders import prepare
from gr4ad_jax.data.schema import DataError
from tests.reading.conftest import ADS, EVENTS

# (file, text in it, what takes its place, the message)
BAD_CELLS = [
  ("ads", ADS, "", r"ads.csv: column 'ad_id' is missing; the file has no columns"),
  (
    "ads",
    "text,",
    "title,",
    r"ads.csv: column 'text' is missing; the file has ad_id, title, account_id",
  ),
  ("ads", ",price,", ",text,", r"ads.csv: column 'text' stands there twice"),
  ("ads", ADS.split("\n", 1)[1], "", r"ads.csv: no rows"),
  ("ads", "\n13,", "\n0012,", r"ads.csv: column 'ad_id', row 2: '0012' is already the ad of row 1"),
  ("ads", "\n13,", "\n ,", r"ads.csv: column 'ad_id', row 2: ' ' is empty"),
  ("ads", ",zoo,", ",,", r"ads.csv: column 'account_id', row 2: '' is empty"),
  ("ads", "3.5", "-3.5", r"ads.csv: column 'price', row 1: '?-3.5'? is negative"),
  ("ads", "3.5", "cheap", r"ads.csv: column 'price', row 1: 'cheap' is not a number"),
  ("ads", "3.5", "nan", r"ads.csv: column 'price', row 1: 'nan' is not a number"),
  ("ads", "2024-01-01", "2024-13-01", r"ads.csv: column 'created', row 1: '2024-13-01' is no time"),
  ("ads", "zoo,,", "zoo,,,,", r"ads.csv: row 2: 7 cells, the header has 5"),
  ("events", EVENTS.split("\n", 1)[1], "", r"events.csv: no rows"),
  ("events", "user_id,", "user,", r"events.csv: column 'user_id' is missing"),
  ("events", "u2,", ",", r"events.csv: column 'user_id', row 3: '' is empty"),
  ("events", "u1,13", "u1,14", r"events.csv: column 'ad_id', row 2: '14' is not in the ad table"),
  (
    "events",
    "cart",
    "view",
    r"events.csv: column 'behavior', row 3: 'view' is not one of click, cart, purchase",
  ),
  # A behaviour that is not there is told which ones there are, too.
  ("events", "cart,0", ",0", r"column 'behavior', row 3: '' is not one of click, cart, purchase"),
  (
    "events",
    "cart,0,1",
    "cart,-1,1",
    r"column 'value', row 3: '?-1'? is negative, and only a purchase can be taken back",
  ),
  ("events", "2.5", "inf", r"events.csv: column 'value', row 2: '?inf'? is not a finite"),
  ("events", "2.5", "1e400", r"events.csv: column 'value', row 2: '1e400' is not a finite"),
  (
    "events",
    "2.5",
    "3e38",
    r"column 'value', row 2: '3e38' is more than 1e\+12, the largest number allowed",
  ),
  (
    "events",
    "2.5",
    "1000000000001",
    r"events.csv: column 'value', row 2: '1000000000001' is more than 1e\+12",
  ),
  ("events", "2.5", '"1,234.5"', r"events.csv: column 'value', row 2: '1,234.5' is not a number"),
  ("events", "2.5", "€3", r"events.csv: column 'value', row 2: '€3' is not a number"),
  ("ads", "3.5", "1e13", r"ads.csv: column 'price', row 1: '1e13' is more than"),
  ("events", "2.5,3", "2.5,1e13", r"events.csv: column 'quantity', row 2: '1e13' is more than"),
  ("events", "u1,13", "u1,13.0", r"row 2: '13.0' is not in the ad table, which has '13'"),
  ("events", "u1,13", "u1,013", r"row 2: '013' is not in the ad table, which has '13'"),
  (
    "events",
    "u2,",
    "u\x1b2,",
    r"events.csv: column 'user_id', row 3: 'u\\x1b2' has a control character",
  ),
  (
    "events",
    "u2,",
    "u\x9b2,",
    r"events.csv: column 'user_id', row 3: 'u\\x9b2' has a control character",
  ),
  (
    "events",
    "u2,",
    "u" * 1025 + ",",
    r"events.csv: column 'user_id', row 3: 'uuu.*… is longer than 1024 characters",
  ),
  (
    "events",
    "u2,",
    "1.23E+12,",
    r"events.csv: column 'user_id', row 3: '1.23E\+12' is a number that was shortened",
  ),
  (
    "ads",
    ",zoo,",
    ",1E+12,",
    r"ads.csv: column 'account_id', row 2: '1E\+12' is a number that was shortened",
  ),
  (
    "events",
    ",value,",
    ", value,",
    r"events.csv: the header has ' value'; is it the column 'value'\?",
  ),
  (
    "events",
    "user_id,",
    "User_ID,",
    r"'user_id' is missing; the file has User_ID, .*; 'User_ID' is spelled in",
  ),
  (
    "events",
    "1704153660.9",
    "2025030110",
    r"events.csv: column 'time', row 2: '2025030110' may be a date",
  ),
  (
    "events",
    "1704153660.9",
    "1.70415E+09",
    r"events.csv: column 'time', row 2: '1.70415E\+09' has an exponent",
  ),
  (
    "events",
    "2024-01-02T00:00:00Z",
    "9999-12-31",
    r"row 1: '9999-12-31' is no time from 1970 to 2099 \(unix .*\)$",
  ),
  (
    "ads",
    "2024-01-01",
    "2100-01-01",
    r"ads.csv: column 'created', row 1: '2100-01-01' is no time from 1970 to 2099",
  ),
  (
    "events",
    "behavior",
    "behaviour",
    "events.csv: the header has 'behaviour'; is it the column 'behavior'",
  ),
  (
    "events",
    "quantity",
    "Quantity ",
    "events.csv: the header has 'Quantity '; is it the column 'quantity'",
  ),
  (
    "events",
    "quantity",
    "request id",
    "events.csv: the header has 'request id'; is it the column 'request_id'",
  ),
  (
    "events",
    "u2,",
    "\ufeffu2,",
    r"column 'user_id', row 3: '\\ufeffu2' has a byte order mark \(U\+FEFF\)",
  ),
  (
    "events",
    "u2,",
    "user_id,",
    "column 'user_id', row 3: 'user_id' is the name of the column: is this row a second",
  ),
  ("ads", "\n13,", "\nad_id,", "ads.csv: column 'ad_id', row 2: 'ad_id' is the name of the column"),
  (
    "events",
    "2.5,3",
    "2.5,-3",
    r"events.csv: column 'quantity', row 2: '?-3'? is negative, and nothing is taken back",
  ),
  (
    "events",
    "1704153660.9",
    "",
    r"events.csv: column 'time', row 2: '' is empty, a time is needed",
  ),
  ("events", "1704153660.9", "now", r"events.csv: column 'time', row 2: 'now' is no time"),
  (
    "events",
    "1704153660.9",
    "1704153660900",
    r"'1704153660900' is no time from 1970.*: these look like milliseconds",
  ),
]


@pytest.mark.parametrize("file,old,new,message", BAD_CELLS)
def test_bad_input_is_named_and_leaves_nothing(config, tmp_path, file, old, new, message):
  path = tmp_path / f"{file}.csv"
  text = path.read_text()
  assert text.count(old) == 1
  path.write_text(text.replace(old, new))
  with pytest.raises(DataError, match=message) as caught:
    prepare.load_dataset(config)
  assert "\n" not in str(caught.value)
  assert sorted(os.listdir(tmp_path)) == ["ads.csv", "events.csv"]
