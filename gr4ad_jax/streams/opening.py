"""Streams by their URLs."""

import urllib.parse

from gr4ad_jax.knobs import ConfigError
from gr4ad_jax.streams import stream
from gr4ad_jax.streams.redis_stream import RedisStream
from gr4ad_jax.streams.sqlite_stream import SqliteStream
from gr4ad_jax.streams.stream import Stream

_FORMS = "sqlite:<path> or redis://host:port/<prefix>"


def open_stream(url: str, clock: stream.Clock | None = None) -> Stream:
  """Opens a stream, which is made where it is missing.

  Args:
    url: `sqlite:<path>`, a file; `redis://[:password@]host:port/<prefix>`, with TLS `rediss://…`.
    clock: seconds since 1970; None: this machine's, of Redis the server's.

  Raises:
    ConfigError: a URL of another form.
    DataError: what is there is damaged, or no stream.
    OSError: it cannot be opened or reached.
    ImportError: the `redis` extra is missing.
  """
  parts = urllib.parse.urlsplit(url)
  if parts.scheme == "sqlite" and url.removeprefix("sqlite:"):
    return SqliteStream(url.removeprefix("sqlite:"), clock or stream.CLOCK)
  if parts.scheme in ("redis", "rediss"):
    return RedisStream(url, clock)
  raise ConfigError(f"--stream={url} is not allowed: {_FORMS}")
