"""Streams in Redis: what the server must promise, kills, damage, passwords."""

import re
import threading
import time

import pytest

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.knobs import ConfigError
from gr4ad_jax.streams import redis_stream
from gr4ad_jax.streams.opening import open_stream
from tests.streams.redis_server import running
from tests.streams.streams import fill, numbers


def test_a_server_that_keeps_nothing_is_refused(tmp_path, caplog):
  with running(tmp_path, "--appendonly", "no") as server:
    told = f"--stream={server.url}/x is not allowed: the server keeps nothing on disk; start it"
    with pytest.raises(ConfigError, match=re.escape(told)):
      open_stream(f"{server.url}/x")
  with running(tmp_path, "--appendonly", "yes", "--appendfsync", "everysec") as server:
    open_stream(f"{server.url}/x").close()
    assert "a crash of its machine may lose what was acknowledged" in caplog.text


def test_urls_are_told_without_the_password(tmp_path, monkeypatch):
  monkeypatch.setattr(redis_stream, "_PAUSE", 0.0)
  with running(tmp_path, *redis_server_settings("s3cret")) as server:
    port = server.port
    stream = open_stream(f"redis://:s3cret@127.0.0.1:{port}/shop")
    assert fill(stream, 2) == [1, 2]
    stream.close()
    for url, told in ((f"redis://:wrong@127.0.0.1:{port}/shop", "invalid username-password"),
                      (f"redis://127.0.0.1:{port}/shop", "Authentication required")):  # fmt: skip
      with pytest.raises(OSError, match=rf"^redis://127.0.0.1:{port}/shop.*{told}"):
        open_stream(url)
  with pytest.raises(OSError, match=rf"^redis://127.0.0.1:{port}/shop cannot be reached: "):
    open_stream(f"redis://:s3cret@127.0.0.1:{port}/shop")
  for prefix in ("", "/", "/a/b", "/a{b}"):
    with pytest.raises(ConfigError, match="is not allowed: redis://host:port/<prefix>"):
      open_stream(f"redis://127.0.0.1:{port}{prefix}")


def redis_server_settings(password):
  return ("--appendonly", "yes", "--appendfsync", "always", "--requirepass", password)


def test_a_damaged_record_is_named(redis_url):
  stream = open_stream(f"{redis_url}/damaged")
  stream.append("events", [{"n": 1}, {"n": 2}], ["a", "b"])
  name, _, _ = stream._names("events")
  fields = dict(stream._client.xrange(name)[1][1])
  stream._client.xdel(name, "2-0")
  stream._client.delete(name)
  stream._client.xadd(name, fields | {b"v": b'{"n":3}'}, id="2-0")
  with pytest.raises(DataError, match="record 2 of topic 'events' is damaged: its checksum"):
    stream.read("events", 1)
  stream.close()


def test_a_slow_client_gives_no_earlier_time(redis_url, monkeypatch):
  """The time is that of the writing: an ad that came after an event has none before it."""
  slow = open_stream(f"{redis_url}/slow")
  other = open_stream(f"{redis_url}/slow")
  write = slow._append

  def later(*arguments):
    other.append("events", [{"n": 1}])
    return write(*arguments)

  monkeypatch.setattr(slow, "_append", later)
  slow.append("ads", [{"n": 1}])
  (event,) = slow.read("events", 0)
  (ad,) = slow.read("ads", 0)
  assert ad.time > event.time and abs(ad.time - time.time()) < 60
  assert slow.retain("ads", seconds=3600) == 0 and slow.retain("ads", seconds=-3600) == 1
  slow.close()
  other.close()


def test_consumers_are_groups_that_redis_shows(redis_url):
  stream = open_stream(f"{redis_url}/groups")
  fill(stream, 3)
  stream.commit("events", "server", 2)
  (group,) = stream._client.xinfo_groups(stream._names("events")[0])
  assert (group["name"], group["last-delivered-id"]) == (b"server", b"2-0")
  stream.close()


def killed(folder, times):
  """Kills a server under two writers, again and again; returns what they were told, and all that
  is there in the end.
  """
  with running(folder) as server:
    stream = open_stream(f"{server.url}/shop")
    told, over = {}, threading.Event()

    def write(number):
      at = 0
      while not over.is_set():
        keys = [f"{number}-{at}-{part}" for part in range(3)]
        try:
          offsets = stream.append("events", [{"key": key} for key in keys], keys)
        except OSError:
          continue  # asked again with the same keys
        told.update(zip(keys, offsets, strict=True))
        at += 1

    writers = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for writer in writers:
      writer.start()
    for number in range(times):
      seen = len(told)
      while len(told) < seen + 30:
        over.wait(0.001)
      server.kill()
      over.wait(0.01 * (number % 4))
      server.start()
    over.set()
    for writer in writers:
      writer.join()
    records, after = [], 0
    while part := stream.read("events", after):
      records += part
      after = part[-1].offset
    stream.close()
  return told, records


def check_killed(told, records):
  assert [record.offset for record in records] == list(range(1, len(records) + 1))
  found = {record.key: record.offset for record in records}
  assert len(found) == len(records)  # none twice
  assert set(told) <= set(found)  # none lost
  for key, offset in told.items():
    assert offset in (None, found[key])  # None: an answer was lost, and the second try told so


def test_kill_9_loses_and_doubles_nothing(tmp_path):
  told, records = killed(tmp_path, 2)
  check_killed(told, records)
  assert len(told) >= 60


@pytest.mark.long
def test_kill_9_thirty_times_loses_and_doubles_nothing(tmp_path):
  told, records = killed(tmp_path, 30)
  check_killed(told, records)
  assert len(told) >= 900


def test_numbers_stay_after_an_erasure_is_compacted(redis_url):
  stream = open_stream(f"{redis_url}/compacted")
  stream.append("events", [{"n": 1, "user": "Wanda"}, {"n": 2, "user": "Bob"}])
  assert stream.erase("events", "user", "Wanda") == 1
  assert stream.compact() and stream.compact()
  assert numbers(stream) == [(2, "", 2)]
  stream.close()
