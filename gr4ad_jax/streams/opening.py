"""Streams by their URLs."""

import urllib.parse

from gr4ad_jax.knobs import ConfigError
from gr4ad_jax.streams import stream
from gr4ad_jax.streams.sqlite_stream import SqliteStream
from gr4ad_jax.streams.stream import Stream

_FORMS = "sqlite:<path>"


def open_stream(url: str, clock: stream.Clock = stream.CLOCK) -> Stream:
  """Opens a stream, which is made where it is missing.

  Args:
    url: `sqlite:<path>`, a file.
    clock: seconds since 1970.

  Raises:
    ConfigError: a URL of another form.
    DataError: what is there is damaged, or no stream.
    OSError: it cannot be opened or reached.
  """
  parts = urllib.parse.urlsplit(url)
  if parts.scheme == "sqlite" and url.removeprefix("sqlite:"):
    return SqliteStream(url.removeprefix("sqlite:"), clock)
  raise ConfigError(f"--stream={url} is not allowed: {_FORMS}")
