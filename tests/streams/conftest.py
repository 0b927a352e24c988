"""A stream of each kind."""

import itertools

import pytest

from tests.streams import redis_server, streams

_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory):
  """A server that this process has started, as a URL without a prefix."""
  with redis_server.running(tmp_path_factory.mktemp("redis")) as server:
    yield server.url


@pytest.fixture(params=["sqlite", "redis"])
def url(request, tmp_path):
  """A URL under which nothing is yet."""
  if request.param == "redis":
    return f"{request.getfixturevalue('redis_url')}/test{next(_NUMBERS)}"
  return f"sqlite:{tmp_path / 'live' / 'stream.sqlite'}"


@pytest.fixture
def stream(url):
  """A new stream."""
  opened = streams.open_stream(url)
  yield opened
  opened.close()
