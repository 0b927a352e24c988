"""Changes of the catalogue on their way: disk, memory, listeners; several at once; a full disk."""

import threading
import time

import numpy as np
import pytest

from tests.serving import shop
from tests.serving.shop import NEW


def test_a_removed_ad_leaves_id_row_codes_and_price(tmp_path):
  catalog = shop.opened(tmp_path)
  words = {"text": "wordtext", "account_id": "wordaccount", "category": "wordcategory"}
  catalog.put("x", words | {"price": 4, "vector": [1.5, 2.5]})
  catalog.put("base2", words)
  codes = catalog.codes_NT.copy()
  catalog.delete("x")
  catalog.delete("base2")
  catalog.close()
  assert not shop.files_with(tmp_path, "word")
  catalog = shop.opened(tmp_path)
  ad = catalog.ad(6)
  assert (ad.ad_id, ad.text, ad.account_id, ad.vector, ad.status) == ("x", "", "", None, "removed")
  assert (
    catalog.ad(2).text == "thing 2" and catalog.ad(2).status == "removed"
  )  # as in the run's table
  np.testing.assert_array_equal(catalog.codes_NT, codes)
  assert catalog.price_N.tolist() == [0, 1, 2, 3, 4, 5, 4]
  # Put back as it was it gets its UA-SID back, without the tokenizer: its fingerprint stays.
  assert catalog.put("x", words | {"price": 4, "vector": [1.5, 2.5]}) == "created"
  assert catalog._tokenizer.calls == 0 and catalog.row("x") == 6
  catalog.close()


def test_ads_put_and_deleted_do_not_fill_the_disk(tmp_path):
  catalog = shop.opened(tmp_path)
  text = "a long text " * 1000
  for n in range(60):
    catalog.put(f"x{n}", {"text": f"{n} {text}", "account_id": "s", "status": "paused"})
  full = sum(path.stat().st_size for path in tmp_path.iterdir())
  for n in range(60):
    catalog.delete(f"x{n}")
  catalog.compact()
  left = sum(path.stat().st_size for path in tmp_path.iterdir() if not path.name.endswith("-shm"))
  assert full > 60 * len(text) and left < 60 * 1000
  catalog.close()


def test_disk_then_memory_then_listeners(tmp_path, monkeypatch):
  catalog, seen = shop.opened(tmp_path), []
  catalog.put("x", NEW)
  row, append = catalog.row("x"), catalog._topic.append

  def state():
    rows = catalog.index.rows_of(catalog.codes_NT[row]).tolist()
    return catalog.get("x")["status"], row in rows, catalog.version

  def watched(changes):
    seen.append(("before the disk", *state()))
    append(changes)
    seen.append(("on disk", *state()))

  monkeypatch.setattr(catalog._topic, "append", watched)
  catalog.on_removed.append(lambda changed: seen.append((changed, *state())))
  catalog.put("x", {"status": "paused"})
  before, after = ("active", True, 1), ("paused", False, 2)
  assert seen == [("before the disk", *before), ("on disk", *before), (row, *after)]
  catalog.close()


def test_a_change_that_cannot_be_written_is_an_error_and_changes_nothing(tmp_path):
  catalog, heard = shop.opened(tmp_path), []
  catalog.on_removed.append(heard.append)
  catalog.put("x", NEW)
  connection = catalog._topic._topic._connection
  (pages,) = connection.execute("PRAGMA page_count").fetchone()
  connection.execute(f"PRAGMA max_page_count={pages}")
  model = shop.base_model() | {"x": (NEW["text"], None, "active")}
  for ad_id in ("x", "y", "y", "base1"):
    with pytest.raises(OSError, match="disk is full"):
      catalog.put(ad_id, {"text": "mug " * 2000, "account_id": "s"})
    shop.check(catalog, model)  # nothing piles up
  assert catalog.row("y") is None and heard == [] and catalog.version == 1
  assert catalog.put("x", NEW) == "updated"  # no change, and it is on disk
  connection.execute("PRAGMA max_page_count=1000000")
  assert catalog.put("y", NEW) == "created" and catalog.row("y") == 7
  catalog.close()
  catalog = shop.opened(tmp_path)
  shop.check(catalog, model | {"y": (NEW["text"], None, "active")})
  catalog.close()


class Writers:
  """Threads that change ads while the first write to the disk waits; `append` is what that then
  does.
  """

  def __init__(self, catalog, monkeypatch, append):
    self._catalog, self._go = catalog, threading.Event()
    self.outcomes, self.batches, self._threads = {}, [], []

    def first_waits(changes):
      self.batches.append([change.key for change in changes])
      assert self._go.wait(60)
      append(changes)

    monkeypatch.setattr(catalog._topic, "append", first_waits)

  def begin(self, name, waiting, change, *arguments):
    """Begins a change, and returns when it stands in the queue, `waiting` long then."""

    def run():
      try:
        self.outcomes[name] = change(*arguments)
      except OSError as error:
        self.outcomes[name] = str(error)

    self._threads.append(threading.Thread(target=run))
    self._threads[-1].start()
    end = time.monotonic() + 60
    while time.monotonic() < end:
      if len(self._catalog._commits.waiting) == waiting and self.batches:
        return
      time.sleep(0.001)
    pytest.fail("the change does not wait")

  def end(self):
    """Lets the disk go on; returns what the changes returned, or the words of their errors."""
    self._go.set()
    for thread in self._threads:
      thread.join()
    return self.outcomes


def test_changes_that_wait_together_share_a_commit_and_no_row_or_code(tmp_path, monkeypatch):
  catalog = shop.opened(tmp_path)
  writers = Writers(catalog, monkeypatch, catalog._topic.append)
  for number, ad_id in enumerate("abcd"):
    writers.begin(ad_id, number + 1, catalog.put, ad_id, NEW)
  writers.begin("again", 5, catalog.put, "c", {"price": 3})
  writers.begin("gone", 6, catalog.delete, "d")
  writers.begin("base", 7, catalog.put, "base0", {"status": "paused"})
  assert catalog.get("a") is None and len(catalog) == 6 and catalog.is_active(0)
  outcomes = writers.end()
  others = {"again": "updated", "gone": True, "base": "updated"}
  assert outcomes == dict.fromkeys("abcd", "created") | others
  assert writers.batches == [["a"], ["b", "c", "d", "c", "d", "base0"]]
  assert [catalog.row(ad_id) for ad_id in "abcd"] == [6, 7, 8, 9]
  assert len({tuple(codes) for codes in catalog.codes_NT[6:].tolist()}) == 4
  assert len({tuple(codes) for codes in catalog.codes_NT[6:, :2].tolist()}) == 1
  model = {ad_id: (NEW["text"], 3 if ad_id == "c" else None, "active") for ad_id in "abc"}
  model = shop.base_model() | model | {"base0": ("thing 0", 0, "paused")}
  shop.check(catalog, model)
  catalog.close()
  catalog = shop.opened(tmp_path)
  shop.check(catalog, model)
  catalog.close()


def test_what_was_made_upon_a_change_that_failed_fails_too(tmp_path, monkeypatch):
  catalog = shop.opened(tmp_path)

  def full(changes):
    raise OSError(28, "disk is full")

  with monkeypatch.context() as patch:
    writers = Writers(catalog, patch, full)
    writers.begin("new", 1, catalog.put, "x", NEW)
    writers.begin("price", 2, catalog.put, "x", {"price": 3})
    writers.begin("same", 2, catalog.put, "x", {"price": 3})  # changes nothing, but waits
    writers.begin("gone", 3, catalog.delete, "base1")
    writers.begin("gone before", 3, catalog.delete, "base1")
    time.sleep(0.05)  # those that add nothing to the queue have looked at it by now
    outcomes = writers.end()
  assert len(outcomes) == 5 and set(outcomes.values()) == {"[Errno 28] disk is full"}
  assert writers.batches == [["x"]]
  shop.check(catalog, shop.base_model())
  assert catalog.put("z", NEW) == "created" and catalog.row("z") == 6
  catalog.close()


def test_closing_writes_what_waits(tmp_path, monkeypatch):
  catalog = shop.opened(tmp_path)
  writers = Writers(catalog, monkeypatch, catalog._topic.append)
  writers.begin("x", 1, catalog.put, "x", NEW)
  writers.begin("y", 2, catalog.put, "y", NEW)
  closing = threading.Thread(target=catalog.close)
  closing.start()
  assert writers.end() == {"x": "created", "y": "created"}
  closing.join()
  catalog = shop.opened(tmp_path)
  assert catalog.get("x") and catalog.get("y")
  catalog.close()
