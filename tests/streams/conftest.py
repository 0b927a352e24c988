"""A stream of each kind."""

import pytest

from tests.streams import streams


@pytest.fixture(params=["sqlite"])
def url(request, tmp_path):
  """A URL under which nothing is yet."""
  del request
  return f"sqlite:{tmp_path / 'live' / 'stream.sqlite'}"


@pytest.fixture
def stream(url):
  """A new stream."""
  opened = streams.open_stream(url)
  yield opened
  opened.close()
