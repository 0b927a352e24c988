"""What every stream promises, whatever lies below it."""

import json
import subprocess
import sys
import threading

import pytest

from gr4ad_jax.knobs import ConfigError
from gr4ad_jax.streams.stream import FellBehind, read_kept
from tests.streams.streams import Clock, fill, numbers, open_stream


def test_records_come_back_in_order_from_an_offset_on(stream):
  assert stream.end("events") == 0
  assert stream.read("events", 0) == []
  assert stream.append("events", [{"n": 1}, {"n": 2, "who": "Zoë"}]) == [1, 2]
  assert stream.append("events", [{"n": 3}], ["c"]) == [3]
  assert stream.append("events", []) == []
  assert numbers(stream) == [(1, "", 1), (2, "", 2), (3, "c", 3)]
  assert numbers(stream, after=2) == [(3, "c", 3)]
  assert [record.offset for record in stream.read("events", 0, limit=2)] == [1, 2]
  assert stream.read("events", 1, limit=1)[0].value == {"n": 2, "who": "Zoë"}
  assert stream.end("events") == 3
  assert stream.end("ads") == 0  # topics count by themselves
  assert stream.append("ads", [{"n": 9}]) == [1]


def test_a_key_that_is_there_is_a_repeat(stream):
  assert stream.append("events", [{"n": 1}, {"n": 2}, {"n": 3}], ["a", "b", "a"]) == [1, 2, None]
  assert stream.append("events", [{"n": 4}, {"n": 5}], ["b", "c"]) == [None, 3]
  assert stream.append("events", [{"n": 6}, {"n": 7}], ["", ""]) == [4, 5]  # no key: no repeat
  assert stream.append("ads", [{"n": 1}], ["a"]) == [1]
  assert numbers(stream) == [(1, "a", 1), (2, "b", 2), (3, "c", 5), (4, "", 6), (5, "", 7)]


def test_what_json_cannot_write_is_refused_as_a_whole(stream):
  for values, keys, told in (
    ([{"n": 1}, {"n": float("nan")}], None, "JSON"),
    ([{"n": 1}, {"n": {1}}], None, "JSON"),
    ([{"n": 1}], ["a", "b"], "2 keys for 1 values"),
  ):
    with pytest.raises(ValueError, match=told):
      stream.append("events", values, keys)
  for name in ("", "Events", "events; DROP", "1a"):
    with pytest.raises(ValueError, match="not allowed"):
      stream.append(name, [{"n": 1}])
    with pytest.raises(ValueError, match="not allowed"):
      stream.read(name, 0)
  assert stream.end("events") == 0


def test_positions_are_kept(stream, url):
  assert stream.position("events", "server") == 0
  stream.commit("events", "server", 7)
  stream.commit("events", "server", 5)  # a reader may go back
  stream.commit("events", "learner", 2)
  other = open_stream(url)
  assert other.position("events", "server") == 5
  assert other.position("events", "learner") == 2
  assert other.position("ads", "server") == 0
  other.close()


def test_a_reader_waits_for_another_opener_of_the_stream(stream, url):
  other = open_stream(url)
  assert not stream.wait("events", 0, 0.01)
  later = threading.Timer(0.1, lambda: fill(other, 1))
  later.start()
  assert stream.wait("events", 0, 60)  # it returns long before
  later.join()
  assert stream.wait("events", 0, 0)
  assert not stream.wait("events", 1, 0)
  other.close()


def test_retention_by_size_takes_the_oldest_and_their_keys(stream):
  fill(stream, 9)  # 7 bytes each: {"n":1}
  assert stream.retain("events", size=30) == 5
  assert numbers(stream, after=5) == [(n, f"k{n}", n) for n in range(6, 10)]
  with pytest.raises(FellBehind, match="offsets 5 to 5 are gone.*start from a snapshot"):
    stream.read("events", 4)
  assert stream.retain("events", size=30) == 0
  assert stream.retain("events", size=0) == 4
  assert stream.end("events") == 9  # offsets are not given twice
  assert fill(stream, 1, start=9) == [10]  # the key is forgotten with its record
  assert fill(stream, 1, start=9) == [None]


def test_who_may_miss_some_reads_on_from_what_is_kept(stream):
  fill(stream, 9)
  stream.retain("events", size=30)
  for after, gone, first in ((0, 5, 6), (3, 2, 6), (5, 0, 6), (7, 0, 8), (9, 0, None)):
    records, missed = read_kept(stream, "events", after, 2)
    assert missed == gone
    assert [record.offset for record in records] == ([first, first + 1] if first else [])


def test_retention_by_age_and_a_clock_that_jumps_back(url, caplog):
  clock = Clock()
  stream = open_stream(url, clock)
  fill(stream, 2)
  clock.now += 100
  fill(stream, 2, start=3)
  clock.now -= 50  # back
  fill(stream, 2, start=5)
  times = [record.time - 1_000_000 for record in stream.read("events", 0)]
  assert times == [0, 0, 100, 100, 100, 100]
  assert "the clock went back 50.0 s" in caplog.text
  clock.now += 50
  assert stream.retain("events", seconds=100) == 0
  clock.now += 1
  assert stream.retain("events", seconds=100) == 2
  assert stream.retain("ads", seconds=100) == 0
  with pytest.raises(FellBehind) as told:
    stream.read("events", 0)
  assert (told.value.topic, told.value.after, told.value.first) == ("events", 0, 3)
  assert [record.offset for record in stream.read("events", 2)] == [3, 4, 5, 6]
  stream.close()


def test_an_erased_user_is_in_no_record(stream):
  values = [{"n": n, "by": {"user": f"u{n % 3}"}} for n in range(9)]
  stream.append("events", values, [f"k{n}" for n in range(9)])
  assert stream.erase("events", "by.user", "u1") == 3
  assert stream.erase("events", "by.user", "u1") == 0
  assert stream.erase("lists", "by.user", "u1") == 0
  assert [n for _, _, n in numbers(stream)] == [0, 2, 3, 5, 6, 8]  # nobody fell behind
  assert stream.append("events", [{"n": 1}], ["k1"]) == [10]  # nor is the key remembered
  assert stream.compact()
  # Sizes are counted without them: 6 of 31 bytes, and 7.
  assert (
    stream.retain("events", size=6 * len(json.dumps(values[0], separators=(",", ":"))) + 7) == 0
  )


def test_many_writers_of_two_openers_lose_and_double_nothing(stream, url):
  other = open_stream(url)
  given = []

  def write(opened, number):
    for n in range(20):
      # Every key comes from two writers; one of them is first.
      given.extend(opened.append("events", [{"n": n}], [f"{number % 2}-{n}"]))

  threads = [threading.Thread(target=write, args=(o, n)) for n, o in enumerate([stream, other] * 2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  found = stream.read("events", 0)
  assert sorted(filter(None, given)) == [record.offset for record in found] == list(range(1, 41))
  assert given.count(None) == 40
  assert {record.key for record in found} == {f"{m}-{n}" for m in range(2) for n in range(20)}
  other.close()


KILLED = """
import os, sys
from tests.streams.streams import fill, open_stream
stream = open_stream(sys.argv[1])
for n in range(1, 30, 3):
  fill(stream, 3, start=n)
  print(n + 2, flush=True)
os.kill(os.getpid(), 9)
"""


def test_what_was_acknowledged_is_there_after_a_kill(url):
  ended = subprocess.run(
    [sys.executable, "-c", KILLED, url], capture_output=True, text=True, check=False
  )
  assert ended.returncode == -9, ended.stderr
  assert ended.stdout.split()[-1] == "30"
  stream = open_stream(url)
  assert numbers(stream) == [(n, f"k{n}", n) for n in range(1, 31)]
  assert fill(stream, 2, start=30) == [None, 31]
  stream.close()


@pytest.mark.parametrize("bad", ["", "sqlite:", "file.sqlite", "kafka://here/x"])
def test_another_url_is_refused(bad):
  with pytest.raises(ConfigError, match=f"--stream={bad} is not allowed: sqlite:<path> or redis:"):
    open_stream(bad)
