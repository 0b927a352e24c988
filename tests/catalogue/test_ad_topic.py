"""A `live` folder of the form before SQLite: carried over once, or refused where it is damaged."""

import json
import os
import shutil
import struct
import zlib

import pytest

from gr4ad_jax.catalogue import old_form
from gr4ad_jax.catalogue.ad_topic import AdTopic
from gr4ad_jax.data.schema import DataError
from tests.serving import shop


class Crash(BaseException):
  """The process ends here."""


def frame(**fields):
  """A record of the old form."""
  payload = json.dumps(fields).encode()
  return struct.pack("<II", len(payload), zlib.crc32(payload)) + payload


def ad(ad_id, row, price, text, **fields):
  codes = [row % 4, row % 3, row % 8]
  return frame(ad_id=ad_id, row=row, codes=codes, price=price, text=text, account_id="s", **fields)


LAST = ad("y", 7, 5.0, "green tea")
HIDDEN = ad("base0", 0, 0.0, "unspeakable", status="removed")
JOURNAL = (
  ad("x", 6, 2.0, "newer"), ad("y", 7, 3.0, "tea", status="paused"), ad("base1", 1, 9.0, "own"),
)  # fmt: skip


def old_folder(folder, digest, tail=b""):
  """As the former server left it: a snapshot, a journal that it made needless, two that follow."""
  folder.mkdir()
  head = {"format": 1, "digest": digest}
  files = {
    "snapshot": [frame(**head, journal=2, records=2), ad("x", 6, 1.0, "old"), HIDDEN],
    "journal.000001": [frame(**head, journal=1), ad("x", 6, 0.5, "oldest")],
    "journal.000002": [frame(**head, journal=2), *JOURNAL],
    "journal.000003": [frame(**head, journal=3), ad("z", 8, 4.0, "pot"), LAST, tail],
    "journal.000004.part": [b"never finished"],
  }  # fmt: skip
  for name, parts in files.items():
    (folder / name).write_bytes(b"".join(parts))
  return folder


def states(folder, digest="d"):
  """{ad id: (row, price, text, status)} of a folder."""
  topic = AdTopic(str(folder), digest)
  found = topic.states()
  topic.close()
  assert [row for _, row, _ in found] == sorted(row for _, row, _ in found)
  assert all(codes == (row % 4, row % 3, row % 8) for _, row, codes in found)
  return {ad.ad_id: (row, ad.price, ad.text, ad.status) for ad, row, _ in found}


RIGHT = {
  "base0": (0, 0.0, "", "removed"), "base1": (1, 9.0, "own", "active"),
  "x": (6, 2.0, "newer", "active"), "y": (7, 5.0, "green tea", "active"),
  "z": (8, 4.0, "pot", "active"),
}  # fmt: skip


@pytest.mark.parametrize(
  "tail", [b"", ad("w", 9, 1.0, "cut")[:-1], ad("w", 9, 1.0, "cut")[:5], bytes(300)]
)
def test_a_folder_of_the_old_form_is_carried_over(tmp_path, tail):
  folder = old_folder(tmp_path / "live", "d", tail)
  for _ in range(2):
    assert states(folder) == RIGHT
    assert sorted(os.listdir(folder)) == ["ads.sqlite", "lock"]
    assert b"unspeakable" not in (folder / "ads.sqlite").read_bytes()


def test_the_catalogue_goes_on_with_it(tmp_path):
  catalog = shop.opened(tmp_path / "new")
  digest = catalog._topic._topic.notes["digest"]
  catalog.close()
  catalog = shop.opened(old_folder(tmp_path / "live", digest))
  model = shop.base_model() | {
    name: (text, price, "active") for name, (_, price, text, _) in RIGHT.items()
  }
  del model["base0"]
  shop.check(catalog, model)
  assert catalog.get("base0") is None
  calls = catalog._tokenizer.calls
  back = {"text": "unspeakable", "account_id": "s", "price": 0}
  assert catalog.put("base0", back) == "created"
  assert catalog._tokenizer.calls == calls  # it is as it was, and so is its UA-SID
  catalog.close()


def test_a_crash_at_any_step_of_it_loses_nothing(tmp_path, monkeypatch):
  """Stops before the n-th call that changes a name, for every n; then it is opened again."""
  real = {name: getattr(os, name) for name in ("replace", "remove", "fsync")}
  seen = set()
  for step in range(100):
    folder, calls = old_folder(tmp_path / f"run{step}", "d"), []

    def counted(name, step=step, calls=calls):
      def call(path, *arguments):
        if ".sqlite" not in str(path) or os.path.exists(path):  # else it changes nothing
          calls.append(name)
        if len(calls) == step + 1:
          raise Crash
        return real[name](path, *arguments)

      return call

    with monkeypatch.context() as patch:
      for name in real:
        patch.setattr(os, name, counted(name))
      try:
        states(folder)
        crashed = False
      except Crash:
        crashed = True
    seen.add(tuple(sorted(os.listdir(folder))))
    assert states(folder) == RIGHT, step
    assert sorted(os.listdir(folder)) == ["ads.sqlite", "lock"]
    if not crashed:
      break
  assert not crashed and len(seen) >= 6


def test_an_older_server_that_wrote_later_is_not_overlooked(tmp_path):
  folder = old_folder(tmp_path / "live", "d")
  states(folder)
  later = frame(format=1, digest="d", journal=1) + ad("w", 9, 1.0, "later")
  (folder / "journal.000001").write_bytes(later)
  with pytest.raises(
    DataError, match="journal.000001: an older server wrote it after ads.sqlite was made"
  ):
    states(folder)
  assert (folder / "journal.000001").exists()


def test_damage_is_refused_and_leaves_the_folder_as_it_is(tmp_path):
  whole = old_folder(tmp_path / "whole", "d")
  torn = len((whole / "journal.000003").read_bytes()) - len(LAST)
  for name in ("snapshot", "journal.000002", "journal.000003"):
    for at in range(0, (whole / name).stat().st_size, 7):
      folder = shutil.copytree(whole, tmp_path / "copy", dirs_exist_ok=True)
      content = bytearray((folder / name).read_bytes())
      content[at] ^= 4
      (folder / name).write_bytes(content)
      # The last record may be one that was being written, and one whose length leads beyond the
      # end.
      second = len(frame(format=1, digest="d", journal=3))
      if name == "journal.000003" and (at >= torn or at - second in range(4)):
        continue
      with pytest.raises(DataError, match=f"{name}: .*damaged"):
        old_form.payloads(str(folder), "d")
      shutil.rmtree(folder)


def test_missing_and_foreign_files_are_named(tmp_path):
  folder = old_folder(tmp_path / "live", "d")
  before = sorted(os.listdir(folder))
  with pytest.raises(DataError, match="snapshot: holds the changes of another index"):
    states(folder, "other")
  assert sorted(os.listdir(folder)) == sorted([*before, "lock"])
  content = (folder / "snapshot").read_bytes()
  (folder / "snapshot").write_bytes(content[: -len(HIDDEN)])
  with pytest.raises(DataError, match="snapshot: 1 records, 2 were written"):
    states(folder)
  (folder / "snapshot").write_bytes(content)
  os.rename(folder / "journal.000002", folder / "moved")
  with pytest.raises(DataError, match="journal.000002: no such file; the changes in it are lost"):
    states(folder)
  os.remove(folder / "journal.000003")
  with pytest.raises(DataError, match="journal.000002: no such file"):
    states(folder)
  os.remove(folder / "snapshot")
  (folder / "journal.000001").write_bytes(frame(format=2, digest="d", journal=1))
  with pytest.raises(DataError, match="journal.000001: format 2, 1 is read"):
    states(folder)
  topic = AdTopic(str(tmp_path / "new"), "d")
  with pytest.raises(DataError, match="in use by another process"):
    AdTopic(str(tmp_path / "new"), "d")
  topic.close()
  with pytest.raises(DataError, match="ads.sqlite: holds the changes of another index"):
    AdTopic(str(tmp_path / "new"), "other")
