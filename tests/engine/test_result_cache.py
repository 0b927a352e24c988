"""The result cache: life, bound, width, and nothing kept that names an ad which has changed."""

import pickle
import random
import threading
import tracemalloc

import pytest

from gr4ad_jax.answering.messages import Answer
from gr4ad_jax.engine.result_cache import ResultCache, digest


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

  threads = [threading.Thread(target=answer, args=(seed,)) for seed in range(3)] + [
    threading.Thread(target=remove)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert all(cache.get(str(row).encode()) is None for row in range(40)) and not cache._keys_of_row


def test_a_key_is_of_content():
  one = digest("u1", ({"ad_id": "a", "time": 3},), 10, None)
  assert one == digest("u1", ({"time": 3, "ad_id": "a"},), 10, None)
  assert (
    len(
      {
        one,
        digest("u1", ("a",), 10, None),
        digest("u1", ("a",), 11, None),
        digest(None, ("a",), 10, 5),
      }
    )
    == 4
  )
  assert digest("\ud800") != digest("\ud801")


def test_the_bytes_are_bounded_whatever_is_asked(clock):
  most = 400_000
  cache = ResultCache(60, 10_000, clock, most_bytes=most)
  answers = {}
  for n in range(200):
    ads = tuple({"ad_id": f"{n}-{m}", "text": "x" * 50} for m in range(40))
    answers[n] = Answer("model", 1, (8,), ads)
  for n, answer in answers.items():
    assert cache.put(digest(n), answer, range(40), cache.moment)
    assert cache.nbytes <= most
  kept = [n for n in answers if cache.get(digest(n)) is not None]
  assert 5 < len(kept) < 100 and kept[-1] == 199 and kept == list(range(kept[0], 200))
  assert all(cache.get(digest(n)) == answers[n] for n in kept)
  assert sum(len(pickle.dumps(answers[n])) for n in kept) < cache.nbytes
  assert not cache.put(b"huge", "x" * most, [], cache.moment) and cache.get(b"huge") is None
  for row in range(40):
    cache.drop(row)
  assert (cache.nbytes, len(cache)) == (0, 0)


def test_the_estimate_is_not_below_what_entries_take(clock):
  cache = ResultCache(60, 10_000, clock, most_bytes=1 << 30)
  tracemalloc.start()
  try:
    for n in range(300):
      rows = [int(f"{n}{m:03d}") for m in range(30)]
      cache.put(
        digest(n), Answer("model", n, (8,), ({"ad_id": f"a{n}" * 20},) * 5), rows, cache.moment
      )
    taken, _ = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert taken <= cache.nbytes <= 4 * taken


def test_what_has_expired_takes_nothing(clock):
  cache = ResultCache(60, 1000, clock)
  for n in range(50):
    cache.put(digest(n), "answer", [n], cache.moment)
    clock.now += 1
  cache.put(digest(5), "renewed", [5], cache.moment)  # lives on, though it came early
  clock.now += 30
  assert cache.get(b"none") is None
  assert len(cache) == 30 and cache.get(digest(5)) == "renewed" and cache.get(digest(20)) is None
  clock.now += 60
  cache.put(b"a", "answer", [], cache.moment)
  assert len(cache) == 1 and cache.nbytes < 3000


def test_a_key_that_is_written_again_and_again_leaves_no_trail(clock):
  cache = ResultCache(60, 1000, clock)
  for _ in range(2000):
    clock.now += 0.01
    cache.put(b"a", "answer", [1], cache.moment)
  assert len(cache) == 1 and len(cache._by_age) < 50 and cache.nbytes < 3000
  clock.now += 61
  assert cache.get(b"a") is None and cache.nbytes == 0
