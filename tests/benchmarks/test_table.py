"""The suite of tables needs devices; what it measures is tested on eight (`tests/parallel/test_tables.py`)."""

from tests import tiny


def test_one_device_is_refused_in_one_line():
  done = tiny.run("benchmark", "--suite=table", "--ads=100")
  assert done.status == 2 and done.err.count("\n") == 1
  assert done.err.startswith("error: --suite=table is not allowed: there is 1 device; XLA_FLAGS=")
