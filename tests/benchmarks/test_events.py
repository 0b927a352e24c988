"""The suite of events, small."""

import pytest

from gr4ad_jax.benchmarks import events
from gr4ad_jax.config import ConfigError
from gr4ad_jax.streams.opening import open_stream


def test_appends_followers_and_users_are_measured(monkeypatch):
  monkeypatch.setattr(events, "_BUNDLE", 20)
  told = []
  figures = events.measure("", 2, 30, lambda *progress: told.append(progress))
  assert told == [("users", 20, 30), ("users", 30, 30)]
  for size in events.BATCHES:
    one = figures[f"append_{size}"]
    assert one["events_per_second"] > 0 and one["worst"] >= one["median"] > 0
  # 25 bytes an event and the names of ten visits, beside the pages of an almost empty file.
  assert 50 * 25 < figures["bytes_per_user"] < 10_000
  assert figures["followed_per_second"] > 0 and figures["start_seconds"] > 0
  words = events.summary(figures)
  assert "append in batches of 1000: " in words and "30 users of 50 events: " in words


def test_only_an_empty_stream_is_measured(tmp_path):
  url = f"sqlite:{tmp_path}/s.sqlite"
  stream = open_stream(url)
  stream.append("events", [{"n": 1}])
  stream.close()
  with pytest.raises(ConfigError, match=f"--stream={url} is not allowed: it has events"):
    events.measure(url, 1, 1)
