"""Files that are whole, checked and locked: after a kill at any point, under damage, and by two
processes.
"""

import fcntl
import hashlib
import os
import pathlib
import stat
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from gr4ad_jax import checksums, files
from gr4ad_jax.files import DamagedError
from gr4ad_jax.locks import InUseError, Lock

_HOLDER = """
import sys, time
from gr4ad_jax.locks import Lock
lock = Lock(sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""


class Killed(BaseException):
  """Stands for SIGKILL: nothing of the code under test catches it."""


def sums(folder):
  """(digest, name) of every line of a folder's list."""
  return [tuple(line.split("  ", 1)) for line in (folder / "SHA256SUMS").read_text().splitlines()]


def test_the_list_is_what_sha256sum_writes(tmp_path):
  files.write_json(str(tmp_path / "b.json"), {"x": 1})
  files.save_arrays(str(tmp_path / "a.npz"), x=np.arange(3))
  right = [
    (hashlib.sha256((tmp_path / name).read_bytes()).hexdigest(), name)
    for name in ("a.npz", "b.json")
  ]
  assert sums(tmp_path) == right
  assert sorted(os.listdir(tmp_path)) == ["SHA256SUMS", "a.npz", "b.json"]
  assert files.load_fields(str(tmp_path / "b.json"), "x") == [1]
  np.testing.assert_array_equal(files.load_arrays(str(tmp_path / "a.npz"), "x")[0], [0, 1, 2])
  checksums.forget(str(tmp_path / "a.npz"))
  assert sums(tmp_path) == right[1:]
  checksums.forget(str(tmp_path / "b.json"))
  assert checksums.listed(str(tmp_path)) is None
  files.write_json(str(tmp_path / "b.json"), {"x": 1})
  assert sums(tmp_path) == right[1:]


@pytest.mark.parametrize("moment", ["written", "noted", "renamed"])
def test_a_kill_leaves_the_old_file_or_the_new_one_and_either_is_right(
  tmp_path, monkeypatch, moment
):
  path = str(tmp_path / "config.json")
  files.write_text(path, "old")
  note, calls = checksums.note, []

  def killed(*arguments, alone):
    calls.append(alone)
    if moment == "written" or moment == "renamed" and alone:
      raise Killed
    note(*arguments, alone=alone)

  def no_rename(*_):
    raise Killed

  monkeypatch.setattr(checksums, "note", killed)
  if moment == "noted":
    replace = os.replace
    monkeypatch.setattr(
      files.os, "replace", lambda a, b: no_rename() if b == path else replace(a, b)
    )
  with pytest.raises(Killed):
    files.write_text(path, "new, and longer")
  expected = "new, and longer" if moment == "renamed" else "old"
  assert (tmp_path / "config.json").read_text() == expected
  checksums.check(path)
  monkeypatch.undo()
  files.write_text(path, "newest")
  checksums.check(path)
  assert [name for _, name in sums(tmp_path)] == ["config.json"]  # one line again


def test_a_writer_that_fails_leaves_everything_as_it_was(tmp_path):
  path = str(tmp_path / "a.json")
  files.write_json(path, {"x": 1})
  before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
  with pytest.raises(ValueError, match="JSON"):
    files.write_json(path, {"x": float("nan")})  # NaN is no JSON
  with pytest.raises(KeyError), files.replacing(path) as part:
    pathlib.Path(part).write_text("half of")
    raise KeyError
  assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path):
  place = tmp_path / "above" / "made"
  with pytest.raises(OSError, match="full"), files.new_folder(str(place)) as part:
    pathlib.Path(part, "a").write_text("half")
    raise OSError("the disk is full")
  assert [path for path in tmp_path.rglob("*") if path.name != "above"] == []
  with files.new_folder(str(place)) as part:
    pathlib.Path(part, "a").write_text("whole")
    assert not place.exists()
  assert (place / "a").read_text() == "whole"
  assert [path.name for path in place.parent.iterdir()] == ["made"]


@pytest.mark.parametrize("listed", [True, False])
def test_what_cannot_be_read_is_one_line_that_names_the_file(tmp_path, listed):
  path = tmp_path / "x.npz"
  files.save_arrays(str(path), a=np.arange(1000), b=np.ones(3))
  whole = path.read_bytes()
  with zipfile.ZipFile(tmp_path / "other.npz", "w") as other:
    other.writestr("a.npy", b"no array")
  lone = tmp_path / "lone.npz"
  with open(lone, "wb") as file:
    np.save(file, np.arange(3))
  damages = [
    whole[:-1],
    whole[: len(whole) // 2],
    b"",
    b"no archive",
    (tmp_path / "other.npz").read_bytes(),
    lone.read_bytes(),
  ]
  if not listed:
    (tmp_path / "SHA256SUMS").unlink()
  for content in damages:
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"x\.npz is damaged") as error:
      files.load_arrays(str(path), "a")
    assert "\n" not in str(error.value)
  path.write_bytes(whole)
  with pytest.raises(DamagedError, match=r"x\.npz is damaged: it has no 'c'"):
    files.load_arrays(str(path), "c")
  with pytest.raises(FileNotFoundError):
    files.load_arrays(str(tmp_path / "absent.npz"), "a")


def test_json_that_is_none_is_named(tmp_path):
  path = tmp_path / "x.json"
  for content in (b"{", b"\xff\xfe{}"):
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"x\.json is damaged: not JSON"):
      files.load_json(str(path))
  path.write_text("[1]")
  with pytest.raises(DamagedError, match="it has no 'a'"):
    files.load_fields(str(path), "a")


def test_every_bit_of_a_file_and_of_its_list_counts(tmp_path):
  path = tmp_path / "x.json"
  files.write_json(str(path), {"x": 1})
  for name in ("x.json", "SHA256SUMS"):
    whole = (tmp_path / name).read_bytes()
    for bit in range(8 * len(whole)):
      flipped = bytearray(whole)
      flipped[bit // 8] ^= 1 << bit % 8
      (tmp_path / name).write_bytes(bytes(flipped))
      try:
        assert files.load_json(str(path)) == {
          "x": 1
        }  # such as a flip in the name of the list's line
      except DamagedError as error:
        assert name in str(error) and "\n" not in str(error)
      else:
        assert name == "SHA256SUMS"
    (tmp_path / name).write_bytes(whole)


def test_older_files_are_read_with_one_warning_a_run(tmp_path, caplog):
  for name in ("tokenizer/a.json", "features/b.json", "reward/checkpoints/7/c.json", "d.json"):
    files.write_json(str(tmp_path / "run" / name), {"x": 1}, summed=False)
  with caplog.at_level("WARNING"):
    for name in ("tokenizer/a.json", "features/b.json", "d.json"):
      assert files.load_json(str(tmp_path / "run" / name)) == {"x": 1}
    checksums.check_tree(str(tmp_path / "run" / "reward" / "checkpoints" / "7"))
  (line,) = caplog.messages
  assert line.startswith(f"{tmp_path}/run has files without checksums")


@pytest.mark.parametrize("name", ["tokenizer/a.json", "reward/features/b.json", "config.json"])
@pytest.mark.parametrize("lost", ["list", "line"])
def test_a_checksum_that_was_promised_and_is_gone_is_damage(tmp_path, caplog, name, lost):
  run = tmp_path / "run"
  files.write_json(str(run / "config.json"), {"checksums": True})
  path = run / name
  if name != "config.json":
    files.write_json(str(path), {"x": 1})
  files.load_json(str(path))
  sums_of = path.parent / "SHA256SUMS"
  if lost == "list":
    sums_of.unlink()
  else:
    checksums.forget(str(path))
    files.write_json(str(path.parent / "other.json"), {})
  words = {"list": "is missing", "line": f"lacks {path.name}"}[lost]
  with pytest.raises(DamagedError) as error:
    files.load_json(str(path))
  assert str(error.value) == f"{sums_of} {words}, though {run} was written with checksums"
  assert not caplog.messages


def test_a_tree_whose_promised_list_is_gone_is_damaged(tmp_path):
  files.write_json(str(tmp_path / "config.json"), {"checksums": True})
  for folder in ("checkpoints/7", "reward/checkpoints/7"):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "x").write_text("x")
    checksums.write_tree(str(tmp_path / folder))
    checksums.check_tree(str(tmp_path / folder))
    (tmp_path / folder / "SHA256SUMS").unlink()
    with pytest.raises(DamagedError, match=f"{folder}/SHA256SUMS is missing, though"):
      checksums.check_tree(str(tmp_path / folder))


def test_a_tree_is_compared_file_by_file(tmp_path):
  (tmp_path / "7" / "params").mkdir(parents=True)
  for name in ("params/x", "params/y", "top"):
    (tmp_path / "7" / name).write_text(name)
  folder = str(tmp_path / "7")
  checksums.write_tree(folder)
  checksums.check_tree(folder)
  (tmp_path / "7" / "params" / "y").write_text("params/z")
  checksums.check_tree(folder, lambda name: name != "params/y")
  with pytest.raises(DamagedError, match="7/params/y is damaged"):
    checksums.check_tree(folder)
  (tmp_path / "7" / "params" / "y").unlink()
  with pytest.raises(DamagedError, match="7/params/y is missing"):
    checksums.check_tree(folder, lambda name: name == "params/y")
  with pytest.raises(FileNotFoundError):
    checksums.check_tree(str(tmp_path / "8"))


def test_a_lock_is_held_by_one_process_and_goes_with_it(tmp_path):
  path = str(tmp_path / "lock")
  holder = subprocess.Popen(
    [sys.executable, "-c", _HOLDER, path], stdout=subprocess.PIPE, text=True
  )
  try:
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(InUseError, match="in use by another process"):
      Lock(path)
  finally:
    holder.kill()  # SIGKILL
    holder.wait()
  with Lock(path), pytest.raises(InUseError):
    Lock(path)


def test_a_lock_whose_file_was_deleted_meanwhile_is_taken_anew(tmp_path, monkeypatch):
  path, flock, calls = str(tmp_path / "lock"), fcntl.flock, []

  def slow(handle, how):
    if not calls:
      os.remove(path)  # its holder deletes it between our opening and our locking
    calls.append(handle)
    flock(handle, how)

  monkeypatch.setattr(fcntl, "flock", slow)
  with Lock(path) as lock:
    assert len(calls) == 2 and lock.stands
    os.remove(path)
    assert not lock.stands


def test_locks_are_of_files_and_leave_none_behind(tmp_path, monkeypatch):
  """NFS locks no directories, and takes a lock only for what is open for writing."""
  flock, locked = fcntl.flock, []

  def as_nfs(handle, how):
    assert stat.S_ISREG(os.fstat(handle).st_mode)
    assert fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    locked.append(handle)
    flock(handle, how)

  monkeypatch.setattr(fcntl, "flock", as_nfs)
  files.write_json(str(tmp_path / "a.json"), {})
  checksums.forget(str(tmp_path / "a.json"))
  assert len(locked) == 3 and os.listdir(tmp_path) == ["a.json"]


def test_where_there_are_no_locks_work_goes_on(tmp_path, monkeypatch, caplog):
  def unsupported(*_):
    raise OSError(95, "Operation not supported")

  monkeypatch.setattr(fcntl, "flock", unsupported)
  with caplog.at_level("WARNING"), Lock(str(tmp_path / "lock")):
    assert "cannot be locked" in caplog.text
