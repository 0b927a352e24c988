"""What the tests of the whole server share: one training."""

import pytest

from tests.serving import runs as runs_lib


@pytest.fixture(scope="session")
def runs(shared_folder, compile_cache):
  """See `runs.train`."""
  return runs_lib.train(shared_folder / "served")
