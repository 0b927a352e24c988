"""What the tests of the whole server share: one training."""

import pytest

from tests.serving import runs as runs_lib


@pytest.fixture(scope="session")
def runs(tmp_path_factory, compile_cache):
  """See `runs.train`."""
  return runs_lib.train(tmp_path_factory.mktemp("served"))
