"""The catalogue of ads: changes, what they do to index and arrays, and what is left of them
after kill -9.
"""

import pathlib
import random
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr4ad_jax import config
from gr4ad_jax.catalogue import ad_rows, tending
from gr4ad_jax.catalogue.catalog import AdCatalog
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.sid.tokenizer import Tokenizer
from tests.serving import shop

ROOT = pathlib.Path(__file__).parents[2]
NEW = shop.NEW


OPTIONAL = {"price": st.none() | st.integers(0, 3), "status": st.sampled_from(["active", "paused"])}
FIELDS = st.fixed_dictionaries(
  {"text": st.sampled_from(["mug", "rug"]), "account_id": st.just("s")}, optional=OPTIONAL
)
CHANGE = st.tuples(
  st.sampled_from(["base0", "base1", "x", "y"]),
  st.just("delete") | FIELDS | st.fixed_dictionaries({}, optional=OPTIONAL),
)


@settings(max_examples=60, deadline=None)
@given(changes=st.lists(CHANGE | st.sampled_from(["merge", "compact", "reopen"]), max_size=25))
def test_the_catalogue_is_what_was_put(tmp_path_factory, changes):
  folder = tmp_path_factory.mktemp("live")
  catalog, model, rows = shop.opened(folder), shop.base_model(), {}
  for change in changes:
    if change == "merge":
      catalog.index.merge()
    elif change == "compact":
      catalog.compact()
    elif change == "reopen":
      catalog.close()
      catalog = shop.opened(folder)
    elif change[1] == "delete":
      assert catalog.delete(change[0]) == (model.pop(change[0], None) is not None)
      assert catalog.get(change[0]) is None
    elif change[0] not in model and "text" not in change[1]:
      with pytest.raises(DataError, match="a new ad needs text and account_id"):
        catalog.put(*change)
    else:
      ad_id, fields = change
      assert catalog.put(ad_id, fields) == ("updated" if ad_id in model else "created")
      before = dict(
        zip(("text", "price", "status"), model.get(ad_id, ("", None, "active")), strict=True)
      )
      model[ad_id] = tuple(
        {name: fields.get(name, value) for name, value in before.items()}.values()
      )
      assert rows.setdefault(ad_id, catalog.row(ad_id)) == catalog.row(ad_id)  # a row is for ever
    shop.check(catalog, model)
  catalog.close()


def test_codes_stay_as_long_as_the_content(tmp_path):
  encoder = shop.Encoder()
  catalog = shop.opened(tmp_path, encoder)
  catalog.put("x", NEW)
  codes = catalog.get("x")["codes"]
  for fields in ({"status": "paused"}, NEW, {"status": "active"}, {"text": " a red\n mug "}):
    catalog.put("x", fields)
  catalog.delete("x")
  assert catalog.put("x", NEW) == "created" and catalog.get("x")["codes"] == codes
  catalog.put("base3", {"status": "paused"})
  assert encoder.calls == 1 and catalog.get("base3")["codes"] == shop.codes()[3].tolist()
  catalog.put("x", {"price": 4})  # content; its own code counts as free
  assert encoder.calls == 2 and catalog.get("x")["codes"] == codes
  catalog.close()


def test_listeners_hear_of_updates_and_removals_only(tmp_path):
  catalog, heard = shop.opened(tmp_path), []
  catalog.on_removed.append(heard.append)
  catalog.put("x", NEW)
  assert heard == []
  catalog.put("x", NEW)  # nothing changes
  assert heard == [] and catalog.version == 1
  catalog.put("x", {"price": 2})
  catalog.put("base2", {"status": "paused"})
  catalog.delete("base1")
  catalog.delete("base1")
  assert heard == [catalog.row("x"), 2, 1] and catalog.version == 4
  catalog.put("x", {"price": 0.85})
  assert catalog.get("x")["price"] == 0.85 and catalog.price_N[-1] == np.float32(0.85)
  catalog.close()


def test_a_full_overlay_is_merged(tmp_path):
  catalog = shop.opened(tmp_path)
  for n in range(60):  # the overlay holds 16
    catalog.put(f"x{n}", NEW | {"text": f"mug {n}"})
  assert catalog.index.num_active == 66 and all(catalog.is_active(row) for row in range(66))
  assert [catalog.merge_if_needed(), catalog.merge_if_needed()] == [
    True,
    False,
  ] and catalog.index.fill == 0
  catalog.close()


def test_the_thread_merges_and_compacts(tmp_path, monkeypatch):
  monkeypatch.setattr(tending, "_TICK", 0.01)
  encoder = shop.Encoder()
  catalog = shop.opened(tmp_path, encoder)
  catalog.put("secret", NEW | {"text": "unspeakable"})
  assert shop.files_with(tmp_path, "unspeakable")
  catalog.start()
  assert encoder.calls == 2  # the first is slow: not left to the first request
  catalog.delete("secret")
  for n in range(40):
    catalog.put(f"x{n}", NEW | {"text": f"mug {n}"})
  end = time.monotonic() + 10
  while time.monotonic() < end:
    if not shop.files_with(tmp_path, "unspeakable") and catalog.index.fill <= 0.5:
      break
    time.sleep(0.01)
  assert not shop.files_with(tmp_path, "unspeakable") and catalog.index.fill <= 0.5
  catalog.close()
  catalog.close()  # a second time does nothing
  with pytest.raises(RuntimeError, match="closed"):
    catalog.put("y", NEW)
  catalog = shop.opened(tmp_path)
  assert len(catalog) == 47
  catalog.close()


def test_many_writers(tmp_path):
  catalog = shop.opened(tmp_path)

  def write(writer):
    for n in range(30):
      catalog.put(f"ad{n % 7}", {"text": f"mug {writer} {n}", "account_id": "s", "price": writer})
      catalog.put(f"own{writer}", {"text": f"rug {n}", "account_id": "s", "price": n})

  threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  ids = [*(f"ad{n}" for n in range(7)), *(f"own{n}" for n in range(4))]
  found = {ad_id: catalog.get(ad_id) for ad_id in ids}
  model = shop.base_model() | {
    ad_id: (ad["text"], ad["price"], ad["status"]) for ad_id, ad in found.items()
  }
  assert all(model[f"own{n}"] == ("rug 29", 29, "active") for n in range(4))
  shop.check(catalog, model)
  catalog.close()
  catalog = shop.opened(tmp_path)
  shop.check(catalog, model)
  catalog.close()


BIG, SURROGATE = 10**400, "\ud800"


@pytest.mark.parametrize(
  "ad_id, fields, message",
  [
    ("", NEW, "ad id ''"), (" ", NEW, "ad id"), ("a\0", NEW, "ad id"), (SURROGATE, NEW, "ad id"),
    ("x" * 1025, NEW, "ad id"),
    (7, NEW, "ad id 7"), ("x", {"text": "mug"}, "account_id is missing"),
    ("base0", {"colour": 1}, "field 'colour'"),
    ("base0", {"status": "removed"}, "status 'removed'"),
    ("base0", {"text": " "}, "text ' '"), ("base0", {"text": 3}, "text 3"),
    ("base0", {"text": None}, "text None"),
    ("base0", {"category": SURROGATE}, "category"),
    ("base0", {"text": "x" * 20_001}, "at most|1 to 20000"),
    ("base0", {"form": "radio"}, "form 'radio'"), ("base0", {"price": -1}, "price -1"),
    ("base0", {"price": BIG}, "price 1"),
    ("base0", {"price": float("nan")}, "price nan"), ("base0", {"price": True}, "price True"),
    ("base0", {"price": "3"}, "price '3'"),
    ("base0", {"status": []}, "status"), ("base0", {"vector": []}, "vector"),
    ("base0", {"vector": [[1.0]]}, "vector"),
    ("base0", {"vector": [float("inf")]}, "vector"), ("base0", {"vector": [BIG]}, "vector"),
    ("base0", {"vector": ["a"]}, "vector"), ("base0", {"vector": [None]}, "vector"),
  ],
)  # fmt: skip
def test_bad_fields_are_named_and_change_nothing(tmp_path, ad_id, fields, message):
  catalog = shop.opened(tmp_path)
  with pytest.raises(DataError, match=message) as error:
    catalog.put(ad_id, fields)
  assert "\n" not in str(error.value) and len(str(error.value)) < 300
  shop.check(catalog, shop.base_model())
  assert catalog.version == 0
  catalog.close()


def test_another_index_is_refused(tmp_path):
  catalog = shop.opened(tmp_path)
  with pytest.raises(DataError, match="in use"):
    shop.opened(tmp_path)
  catalog.close()
  with pytest.raises(DataError, match="another index"):
    AdCatalog.open(str(tmp_path), shop.table(), shop.codes()[::-1], shop.Encoder())
  with pytest.raises(DataError, match="another index"):
    AdCatalog.open(str(tmp_path), shop.table(5), shop.codes(5), shop.Encoder())
  shop.opened(tmp_path).close()


def test_a_real_tokenizer_keeps_new_ads_apart(tmp_path):
  rng = np.random.default_rng(0)
  sid = config.SidConfig(codebooks=shop.BOOKS, tower_steps=0)
  centroids = tuple(rng.normal(size=(size, 5)).astype(np.float32) for size in shop.BOOKS[:-1])
  catalog = AdCatalog.open(
    str(tmp_path), shop.table(), shop.codes(), Tokenizer(sid, 0, centroids, None)
  )
  for n in range(8):
    catalog.put(f"x{n}", NEW | {"vector": [1.0, 2, 3, 4, 5]})
  codes = [tuple(catalog.get(f"x{n}")["codes"]) for n in range(8)]
  assert len({code[:2] for code in codes[:7]}) == 1
  assert (
    codes[7][0] == codes[0][0] and codes[7][1] != codes[0][1]
  )  # seven fill their prefix; the eighth goes next door
  assert len(set(codes)) == 8 and not set(codes) & set(map(tuple, shop.codes().tolist()))
  with pytest.raises(DataError, match="vectors are 3 wide"):
    catalog.put("y", NEW | {"vector": [1.0, 2, 3]})
  assert catalog.row("y") is None
  catalog.put("x3", {"vector": [-1.0, -2, -3, -4, -5]})
  assert tuple(catalog.get("x3")["codes"])[:2] != codes[0][:2]
  codes = catalog.codes_NT.copy()
  catalog.close()
  catalog = AdCatalog.open(
    str(tmp_path), shop.table(), shop.codes(), Tokenizer(sid, 0, centroids, None)
  )
  np.testing.assert_array_equal(catalog.codes_NT, codes)
  assert catalog.ad(catalog.row("x3")).vector == np.array([-1, -2, -3, -4, -5], "<f4").tobytes()
  catalog.close()


@given(
  ids=st.lists(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), unique=True
  )
)
def test_rows_of_ids(ids):
  half = len(ids) // 2
  rows = ad_rows.AdRows(np.array(ids[:half], str))
  assert [rows.row(ad) for ad in ids] == [*range(half), *[None] * (len(ids) - half)]
  assert [rows.add(ad) for ad in ids[half:]] == list(range(half, len(ids)))
  assert [rows.row(ad) for ad in ids] == list(range(len(ids))) and rows.row(3) is None


def test_ids_of_one_hash_are_told_apart(monkeypatch):
  monkeypatch.setattr(ad_rows, "hash", lambda ad_id: len(ad_id), raising=False)
  ids = [f"ad{n}" for n in range(12)]
  rows = ad_rows.AdRows(np.array(ids))
  assert [rows.row(ad) for ad in ids] == list(range(12)) and rows.row("xyz") is None


def expected_states(lines, base):
  """{ad id: states that it may be in}: the last acknowledged one, and the one that was on its
  way. `base` has those of the ads that were there at first.
  """
  allowed = dict(base)
  for line in lines:
    kind, ad_id, value = line.split()
    allowed[ad_id] = {value} if kind == "done" else allowed.get(ad_id, {"removed"}) | {value}
  return allowed


@pytest.mark.parametrize("rounds", [4, pytest.param(60, marks=pytest.mark.long)])
def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path, rounds):
  """Writers, compacts and merges side by side, killed at random moments; the folder lives on
  from round to round.
  """
  rng, path, folder = random.Random(0), tmp_path / "log", tmp_path / "live"
  base = {ad_id: {str(int(price))} for ad_id, (_, price, _) in shop.base_model().items()}
  for round_number in range(rounds):
    before = path.stat().st_size if path.exists() else 0
    command = [
      sys.executable,
      "-m",
      "tests.serving.shop",
      str(folder),
      str(path),
      str(round_number),
    ]
    writer = subprocess.Popen(command, cwd=ROOT)
    try:
      end = time.monotonic() + 60
      while (path.stat().st_size if path.exists() else 0) <= before and time.monotonic() < end:
        assert writer.poll() is None
        time.sleep(0.005)
      time.sleep(rng.uniform(0, 0.5))
    finally:
      writer.kill()  # SIGKILL
      writer.wait()
    lines = path.read_text().splitlines()
    assert len(lines) > 2
    catalog, active = shop.opened(folder), 0
    for ad_id, states in expected_states(lines, base).items():
      ad = catalog.get(ad_id)
      state = "removed" if ad is None else str(int(ad["price"]))
      assert state in states, f"round {round_number}: {ad_id}"
      if ad is not None:
        assert ad["text"] == f"thing {state}"
        row, is_active = catalog.row(ad_id), ad["status"] == "active"
        assert (row in catalog.index.rows_of(ad["codes"])) == is_active
        active += is_active
    assert catalog.index.num_active == active
    with open(path, "a") as log:  # what is there now is the state to go on from
      for ad_id in expected_states(lines, base):
        ad = catalog.get(ad_id)
        log.write(f"done {ad_id} {'removed' if ad is None else int(ad['price'])}\n")
    catalog.close()
