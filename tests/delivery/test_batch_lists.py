"""Lists of all users: those of `recommend`, once each, whatever happened on the way."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pyarrow.parquet as parquet
import pytest

from gr4ad_jax.answering.contexts import UserHistories
from gr4ad_jax.answering.recommender import Recommender
from gr4ad_jax.catalogue.choice import Choice
from gr4ad_jax.config import ConfigError
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.delivery.batch_lists import BatchLists, Wanted
from gr4ad_jax.delivery.list_parts import ListParts
from tests import devices, tiny

pytestmark = pytest.mark.usefixtures("compile_cache")
_ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recommender(small_run):
  return Recommender.load(str(small_run))


def lines_of(folder) -> dict[str, list]:
  """The columns of a folder of lists, as whoever reads the whole folder sees them."""
  return parquet.read_table(folder).to_pydict()


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  """The parts of a folder of lists, byte by byte."""
  return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


@pytest.mark.parametrize(
  "choice",
  [
    pytest.param(Choice(), marks=pytest.mark.long),
    Choice(not_ads=("ad03", "ad11"), only_accounts=("shop1", "shop3")),
    pytest.param(Choice(seen_ads="masked", seen_days=30.0), marks=pytest.mark.long),
  ],
  ids=["any", "some", "unseen"],
)
def test_the_lists_are_those_of_one_request_a_user(recommender, tmp_path, choice):
  lists = BatchLists.open(recommender, Wanted(5, choice, 4))
  done = lists.write(str(tmp_path / "lists"))
  found = lines_of(tmp_path / "lists")
  histories = UserHistories.load(recommender.config)
  expected = [
    (user, rank, ad)
    for user in [f"u{n}" for n in range(10)]
    for rank, ad in enumerate(
      recommender.recommend_log(histories.log_of(user), 5, choice=choice)[0], 1
    )
  ]
  assert done == {"parts": 3, "users": 10, "lines": len(expected)}
  keys = list(zip(found["user_id"], found["rank"], found["ad_id"], strict=True))
  assert keys == [(user, rank, ad.ad_id) for user, rank, ad in expected]
  for name in ("log_p", "score", "ecpm"):
    alone = [getattr(ad, name) for *_, ad in expected]
    np.testing.assert_allclose(found[name], alone, rtol=1e-5, atol=1e-5, err_msg=name)
  assert set(found["checkpoint"]) == {4}


def test_a_stopped_job_goes_on(recommender, tmp_path, monkeypatch):
  lists = BatchLists.open(recommender, Wanted(part_users=3))
  lists.write(str(tmp_path / "whole"))
  write = ListParts.write

  def stopped(parts, number, columns):
    if number == 2:
      (tmp_path / "lists" / "_unfinished").mkdir(exist_ok=True)
      (tmp_path / "lists" / "_unfinished" / "part-00002.1.part.parquet").write_bytes(b"PAR1")
      raise KeyboardInterrupt
    write(parts, number, columns)

  with monkeypatch.context() as patched:
    patched.setattr(ListParts, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
      lists.write(str(tmp_path / "lists"))
  assert not (tmp_path / "lists" / "_done.json").exists()
  # A part that a full disk cut off, say, is made again, the whole one is not.
  first = tmp_path / "lists" / "part-00000.parquet"
  first.write_bytes(first.read_bytes()[:-9])
  made = []
  monkeypatch.setattr(
    ListParts, "write", lambda parts, n, columns: (made.append(n), write(parts, n, columns))
  )
  told = []
  done = lists.write(str(tmp_path / "lists"), lambda *what: told.append(what))
  assert made == [0, 2, 3] and told[0] == ("users", 3, 10) and told[-1] == ("users", 10, 10)
  assert contents(tmp_path / "lists") == contents(tmp_path / "whole")
  names = {path.name for path in (tmp_path / "lists").iterdir() if path.suffix != ".parquet"}
  assert names == {"_plan.json", "_done.json", "_lock"}
  assert json.loads((tmp_path / "lists" / "_done.json").read_text()) == done


def test_other_lists_are_not_mixed(recommender, tmp_path):
  folder = str(tmp_path / "lists")
  BatchLists.open(recommender, Wanted(5)).write(folder)
  with pytest.raises(ConfigError, match="its lists were made with k=5, now 6"):
    BatchLists.open(recommender, Wanted(6)).write(folder)
  (tmp_path / "photos").mkdir()
  (tmp_path / "photos" / "sea.jpg").touch()
  with pytest.raises(ConfigError, match="it holds 'sea.jpg' and no lists"):
    BatchLists.open(recommender, Wanted(5)).write(str(tmp_path / "photos"))
  lock = ListParts(folder, BatchLists.open(recommender, Wanted(5)).plan(), 10, 1024).begin()
  with lock, pytest.raises(OSError, match="in use by another process"):
    BatchLists.open(recommender, Wanted(5)).write(folder)


def test_users_of_a_file_come_in_its_order(recommender, tmp_path):
  (tmp_path / "users.csv").write_text("user_id\nu7\nu2\n")
  choice = Choice(not_ads=("ad03", "ad11"), only_accounts=("shop1", "shop3"))
  lists = BatchLists.open(recommender, Wanted(3, choice, 4), str(tmp_path / "users.csv"))
  told = []
  done = lists.write(str(tmp_path / "lists"), lambda *what: told.append(what))
  found = lines_of(tmp_path / "lists")
  assert found["user_id"] == ["u7"] * 3 + ["u2"] * 3 and found["rank"] == [1, 2, 3] * 2
  assert done["lines"] == 6 and told[-1] == ("users", 2, 2)


@pytest.mark.long
def test_a_file_names_users_in_its_order(small_run, tmp_path):
  users = tmp_path / "users.csv"
  users.write_text("user_id\nu7\nu2\n")
  arguments = (f"--workdir={small_run}", f"--out={tmp_path}/lists", f"--users={users}", "--k=3")
  done = tiny.run("batch_recommend", *arguments, "--not_ads=ad03", "--seen_ads=masked")
  assert (done.status, done.err) == (0, "")
  assert done.out.splitlines()[-1] == f"6 lines of 2 users in {tmp_path}/lists"
  assert "users 2/2" in done.out and "ETA 0:00" in done.out
  found = lines_of(tmp_path / "lists")
  assert found["user_id"] == ["u7"] * 3 + ["u2"] * 3 and found["rank"] == [1, 2, 3] * 2
  alone = tiny.run(
    "recommend", f"--workdir={small_run}", "--user=u2", "--k=3", "--json", "--not_ads=ad03",
    "--seen_ads=masked",
  )  # fmt: skip
  assert found["ad_id"][3:] == [ad["ad_id"] for ad in json.loads(alone.out)["ads"]]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("user_id\nu1\nu99\n", "column 'user_id', row 2: 'u99' is no user of the run's event log"),
    ("user_id\nu1\nu2\nu1\n", "column 'user_id', row 3: 'u1' stands there twice"),
    ("user\nu1\n", "column 'user_id' is missing"),
  ],
)
def test_bad_users_are_named(recommender, tmp_path, text, message):
  (tmp_path / "users.csv").write_text(text)
  with pytest.raises(DataError, match=message):
    BatchLists.open(recommender, Wanted(), str(tmp_path / "users.csv"))


def test_a_wrong_wish_leaves_nothing(small_run, tmp_path):
  for flags, message in (
    ([], "error: --out= is not allowed"),
    ([f"--out={tmp_path}/a", "--only_accounts=nobody"], "error: only_accounts: no ad has 'nobody'"),
    ([f"--out={tmp_path}/a", "--users=no.csv"], "error: no.csv: no such file (users)"),
    ([f"--out={tmp_path}/a", "--checkpoint=9"], "holds no checkpoint 9; it has [4]"),
  ):
    done = tiny.run("batch_recommend", f"--workdir={small_run}", *flags)
    assert done.status == 2 and message in done.err and done.err.count("\n") == 1
  assert not (tmp_path / "a").exists()


@pytest.mark.long
def test_where_memory_ends_batches_become_smaller(recommender, monkeypatch):
  lists = BatchLists.open(recommender, Wanted(5))
  tried = []
  rank_log = recommender.rank_log

  def small(log, now_U, k, choice, size):
    tried.append(size)
    if size > 16:
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
    return rank_log(log, now_U, k, choice, size)

  monkeypatch.setattr(recommender, "rank_log", small)
  assert lists._ranked(np.arange(3)).ad_RK.shape == (3, 5) and tried == [64, 32, 16]
  lists._ranked(np.arange(3))
  assert tried[3:] == [16]  # what was found once is kept

  def failing(*_):
    raise jax.errors.JaxRuntimeError("INTERNAL: something else")

  monkeypatch.setattr(recommender, "rank_log", failing)
  with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
    lists._ranked(np.arange(3))


def _command(workdir, out, *more: str) -> list[str]:
  binary = [sys.executable, "-m", "experiments.batch_recommend", f"--workdir={workdir}"]
  return [*binary, f"--out={out}", "--part_users=1", *more]


@pytest.mark.long
def test_ten_kills_change_nothing(small_run, tmp_path):
  subprocess.run(_command(small_run, tmp_path / "whole"), cwd=_ROOT, check=True)
  folder = tmp_path / "lists"
  for kill in range(10):
    job = subprocess.Popen(_command(small_run, folder), cwd=_ROOT, stdout=subprocess.DEVNULL)
    while job.poll() is None and len(contents(folder)) <= kill:
      time.sleep(0.001)  # until this job has made a part, or ends with the last one
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
  subprocess.run(_command(small_run, folder), cwd=_ROOT, check=True)
  assert contents(folder) == contents(tmp_path / "whole")
  assert json.loads((folder / "_done.json").read_text())["users"] == 10


@pytest.mark.long
def test_devices_and_processes_share_the_users(small_run, tmp_path):
  subprocess.run(_command(small_run, tmp_path / "one"), cwd=_ROOT, check=True)
  subprocess.run(
    _command(small_run, tmp_path / "mesh"), cwd=_ROOT, check=True, env=devices.environment(2)
  )
  job = (f"--coordinator=127.0.0.1:{tiny.free_port()}", "--num_processes=2")
  both = [
    subprocess.Popen(
      _command(small_run, tmp_path / "two", *job, f"--process_id={n}"),
      cwd=_ROOT,
      stdout=subprocess.PIPE,
      text=True,
    )
    for n in range(2)
  ]
  outputs = [process.communicate()[0] for process in both]
  assert [process.returncode for process in both] == [0, 0]
  assert "10 users" in outputs[0] and not outputs[1]
  one = lines_of(tmp_path / "one")
  for name in ("mesh", "two"):
    other = lines_of(tmp_path / name)
    assert [other[key] for key in ("user_id", "rank", "ad_id")] == [
      one[key] for key in ("user_id", "rank", "ad_id")
    ]
    np.testing.assert_allclose(other["score"], one["score"], rtol=1e-5, atol=1e-5)
