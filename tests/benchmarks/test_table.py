"""The suite of tables needs devices; what it measures is tested on eight
(`tests/parallel/test_row_tables.py`).
"""

from tests import tiny


def test_one_device_is_refused_in_one_line():
  done = tiny.run("benchmark", "--suite=table", "--ads=1000")
  assert done.status == 2 and done.err.count("\n") == 1
  assert done.err.startswith("error: --suite=table is not allowed: there is 1 device; XLA_FLAGS=")


def test_fewer_ads_than_a_request_holds_are_refused_in_one_line():
  done = tiny.run("benchmark", "--suite=table", "--ads=20", "--history_slots=20")
  assert (done.status, done.err) == (
    2,
    "error: --ads=20 is not allowed: more than --history_slots=20 are needed\n",
  )
