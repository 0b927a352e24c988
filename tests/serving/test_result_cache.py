"""The result cache: life, bound, width, and nothing kept that names an ad which has changed."""

import random
import threading

import pytest

from gr4ad_jax.serving.result_cache import ResultCache, digest


class Clock:
  """Seconds that the test sets."""

  now = 100.0

  def __call__(self):
    return self.now


@pytest.fixture
def clock():
  return Clock()


def test_an_answer_lives_its_seconds(clock):
  cache = ResultCache(60, 10, clock)
  assert cache.put(b"a", "answer", [1], cache.moment)
  clock.now += 59
  assert cache.get(b"a") == "answer" and cache.get(b"b") is None
  clock.now += 1
  assert cache.get(b"a") is None and len(cache) == 0


def test_the_least_recently_used_goes_first(clock):
  cache = ResultCache(60, 2, clock)
  for key in (b"a", b"b"):
    cache.put(key, key, [], 0)
  cache.get(b"a")
  cache.put(b"c", b"c", [], 0)
  assert [cache.get(key) for key in (b"a", b"b", b"c")] == [b"a", None, b"c"]


def test_zero_seconds_keep_nothing(clock):
  cache = ResultCache(0, 10, clock)
  assert not cache.put(b"a", 1, [], 0) and cache.get(b"a") is None


def test_a_narrow_answer_does_not_stand_for_a_wide_one(clock):
  cache = ResultCache(60, 10, clock)
  cache.put(b"a", "answer", [], 0, schedule=1)
  assert [cache.get(b"a", schedule) for schedule in range(3)] == ["answer", "answer", None]


def test_dropping_an_ad_drops_what_names_it(clock):
  cache = ResultCache(60, 10, clock)
  for key, rows in ((b"a", [1, 2]), (b"b", [2, 3]), (b"c", [4])):
    cache.put(key, key, rows, cache.moment)
  assert cache.drop(2) == 2 and cache.drop(9) == 0
  assert [cache.get(key) for key in (b"a", b"b", b"c")] == [None, None, b"c"]


def test_an_answer_that_was_on_its_way_is_not_kept_when_its_ad_goes(clock):
  cache = ResultCache(60, 10, clock)
  moment = cache.moment
  cache.drop(5)
  assert not cache.put(b"a", "stale", [4, 5], moment) and cache.get(b"a") is None
  assert cache.put(b"b", "fresh", [4], moment)
  assert cache.put(b"a", "new", [4, 5], cache.moment)
  for row in range(10, 10_000):  # more than it remembers: then nothing of before is trusted
    cache.drop(row)
  assert not cache.put(b"c", "unsure", [1], moment)


def test_memory_is_bounded_by_the_entries(clock):
  cache, rng = ResultCache(60, 50, clock), random.Random(0)
  for n in range(5_000):
    cache.put(str(rng.randrange(300)).encode(), n, rng.sample(range(1000), 10), cache.moment)
    if n % 7 == 0:
      cache.drop(rng.randrange(1000))
    clock.now += 0.1
  assert len(cache) <= 50
  named = {row for entry in cache._entries.values() for row in entry.rows}
  assert set(cache._keys_of_row) == named


def test_an_ad_that_goes_while_answers_are_kept_is_in_none_of_them(clock):
  cache, gone = ResultCache(60, 100, clock), set()

  def answer(seed):
    rng = random.Random(seed)
    for _ in range(2_000):
      row, moment = rng.randrange(40), cache.moment
      if row not in gone:
        cache.put(str(row).encode(), row, [row], moment)

  def remove():
    for row in range(40):
      gone.add(row)
      cache.drop(row)

  threads = [threading.Thread(target=answer, args=(seed,)) for seed in range(3)] + [threading.Thread(target=remove)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert all(cache.get(str(row).encode()) is None for row in range(40)) and not cache._keys_of_row


def test_a_key_is_of_content():
  one = digest("u1", ({"ad_id": "a", "time": 3},), 10, None)
  assert one == digest("u1", ({"time": 3, "ad_id": "a"},), 10, None)
  assert len({one, digest("u1", ("a",), 10, None), digest("u1", ("a",), 11, None), digest(None, ("a",), 10, 5)}) == 4
  assert digest("\ud800") != digest("\ud801")
