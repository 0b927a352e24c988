"""What the binaries do with bad input and with the smallest: one line, or a run."""

import csv
import json
import os

import pytest

from tests import tiny

_SETTINGS = (*tiny.SETTINGS, "--tower_steps=3", "--tower_width=8")


pytestmark = pytest.mark.usefixtures("compile_cache")


def _found(workdir, *arguments):
  done = tiny.run("recommend", f"--workdir={workdir}", "--json", *arguments)
  assert (done.status, done.err) == (0, "")
  return json.loads(done.out)


def _edit(folder, name, column, row, value):
  """Sets one cell of a CSV file."""
  with open(folder / name, newline="") as file:
    header, *table = csv.reader(file)
  table[row][header.index(column)] = value
  tiny.write_csv(folder / name, header, table)


def _drop_column(folder, name, column):
  with open(folder / name, newline="") as file:
    header, *table = csv.reader(file)
  at = header.index(column)
  tiny.write_csv(
    folder / name, header[:at] + header[at + 1 :], [row[:at] + row[at + 1 :] for row in table]
  )


@pytest.mark.parametrize(
  ("spoil", "arguments", "message"),
  [
    (lambda f: (f / "events.csv").unlink(), (), "events.csv: no such file"),
    (lambda f: _drop_column(f, "events.csv", "time"), (), "column 'time' is missing"),
    (
      lambda f: _edit(f, "ads.csv", "price", 2, "cheap"),
      (),
      "column 'price', row 3: 'cheap' is not a number",
    ),
    (
      lambda f: _edit(f, "events.csv", "ad_id", 4, "ad99"),
      (),
      "column 'ad_id', row 5: 'ad99' is not in the ad table",
    ),
    (
      lambda f: _edit(f, "ads.csv", "ad_id", 7, "ad00"),
      (),
      "row 8: 'ad00' is already the ad of row 1",
    ),
    (
      lambda f: (
        _edit(f, "events.csv", "behavior", 0, "click"),
        _edit(f, "events.csv", "value", 0, "-1"),
      ),
      (),
      "column 'value', row 1: '-1' is negative",
    ),
    (
      lambda f: _edit(f, "events.csv", "time", 1, "yesterday"),
      (),
      "column 'time', row 2: 'yesterday' is no time",
    ),
    (
      lambda f: _edit(f, "events.csv", "behavior", 1, "look"),
      (),
      "row 2: 'look' is not one of click, cart, purchase",
    ),
    (lambda f: tiny.write_csv(f / "events.csv", tiny.EVENT_HEADER, []), (), "events.csv: no rows"),
    (lambda f: None, ("--lazy_layers=2",), "--lazy_layers=2 is not allowed: 0 to 1"),
    (lambda f: None, ("--beams=8,8",), "--beams=8,8 is not allowed: 3 widths"),
    (lambda f: None, ("--learning_rat=1",), "Did you mean: learning_rate"),
    (lambda f: None, ("--encoder=absent.npy",), "absent.npy"),
    (lambda f: None, ("--workdir=",), "--workdir= is not allowed"),
  ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, spoil, arguments, message):
  folder = tiny.write_log(tmp_path / "log")
  spoil(folder)
  workdir = tmp_path / "run"
  done = tiny.run(
    "train", *tiny.source_flags(folder), *_SETTINGS, f"--workdir={workdir}", *arguments
  )
  assert done.status == 2
  assert done.err.startswith("error: ") and message in done.err and done.err.count("\n") == 1
  assert not workdir.exists()
  if "--encoder" not in str(arguments):  # there the data are good, and stay prepared
    assert not (folder / "data").exists()


def test_a_workdir_that_is_no_run_is_told(tmp_path):
  for binary, arguments in {"evaluate": (), "recommend": ("--user=u1",)}.items():
    done = tiny.run(binary, f"--workdir={tmp_path}", *arguments)
    assert done.status == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1
    assert "config.json" in done.err
  (tmp_path / "file").write_text("")
  done = tiny.run("train", f"--workdir={tmp_path}/file")
  assert done.status == 2 and "a file of that name is in the way" in done.err
  assert os.listdir(tmp_path) == ["file"]


def _bare_log(folder, users, visits, ads):
  """Only the needed columns: no value, no behaviour, no request_id."""
  folder.mkdir()
  table = [[f"a{i}", f"thing {i}", "x"] for i in range(ads)]
  tiny.write_csv(folder / "ads.csv", ("ad_id", "text", "account_id"), table)
  taken = [(u, v, k) for u in range(users) for v in range(visits) for k in range(2)]
  rows = [
    [f"u{u}", f"a{(u + v + k) % ads}", 1_700_000_000 + 86_400 * v + 60 * k] for u, v, k in taken
  ]
  tiny.write_csv(folder / "events.csv", ("user_id", "ad_id", "time"), rows)
  return folder


@pytest.mark.long
@pytest.mark.parametrize(("visits", "said"), [(4, "recall@10"), (2, "nothing to evaluate on")])
def test_the_smallest_logs_train(tmp_path, visits, said):
  """Three ads, fewer than beams, codes or cuts; no money; and, with two visits a user, nothing
  held out.
  """
  folder = _bare_log(tmp_path / "log", users=4, visits=visits, ads=3)
  workdir = tmp_path / "run"
  settings = (
    "--behaviors=click",
    "--max_steps=2",
    "--layers=1",
    "--lazy_layers=0",
    f"--workdir={workdir}",
  )
  done = tiny.run("train", *tiny.source_flags(folder), *_SETTINGS, *settings)
  assert (done.status, done.err) == (0, "") and said in done.out
  assert ("revenue@10" in done.out) is False
  assert {ad["ad_id"] for ad in _found(workdir, "--user=u0", "--k=50")["ads"]} == {"a0", "a1", "a2"}
