"""What the page is told of the loop, from files as learner and reward system write them."""

import json
import os

import pytest

from gr4ad_jax.learning import status
from gr4ad_jax.learning.promotions import LEARNER, Promotions

DAY = 86_400
FIRST = 1_291_161_600  # 2010-12-01


def _round(step, time, requests, candidate, start=None, promoted=None, lag=0):
  line = {"step": step, "prequential/time": time, "prequential/requests": requests}
  for name, pair in (("candidate", candidate), ("start", start)):
    if pair is not None:
      line[f"prequential/{name}_recall@10"] = pair[0]
      line[f"prequential/{name}_revenue@10"] = pair[1]
  if promoted is not None:
    line["guard/promoted"] = float(promoted)
  return line | {"stream/lag": lag}


ROUNDS = [
  _round(4, FIRST + 60, 10, (0.3, 0.2)),  # the first: there is one set of parameters alone
  _round(8, FIRST + 7200, 30, (0.5, 0.4), (0.1, 0.0), True),
  _round(12, FIRST + DAY, 20, (0.2, 0.1), (0.3, 0.3), False, 17),
]


@pytest.fixture
def folder(tmp_path):
  made = tmp_path / LEARNER
  os.makedirs(made)
  return made


def _write(folder, rounds, end=""):
  text = "".join(json.dumps(one) + "\n" for one in rounds)
  (folder / "metrics.jsonl").write_text(text + end)


def test_nothing_is_told_where_nobody_learns(tmp_path):
  assert status.LoopStatus(str(tmp_path)).read() is None


def test_days_are_means_over_requests(tmp_path, folder):
  _write(folder, ROUNDS, '{"step": 16, "prequen')  # torn: it is being written
  told = status.LoopStatus(str(tmp_path)).read()
  first, second = told["days"]
  assert (first["day"], first["requests"]) == (FIRST, 40)
  assert first["learning"]["recall"] == pytest.approx((10 * 0.3 + 30 * 0.5) / 40)
  assert first["frozen"]["recall"] == pytest.approx((10 * 0.3 + 30 * 0.1) / 40)
  assert first["frozen"]["revenue"] == pytest.approx(10 * 0.2 / 40)
  assert second["frozen"] == {"recall": 0.3, "revenue": 0.3}
  assert (told["promoted"], told["refused"], told["lag"]) == (1, 1, 17)
  assert (told["in_use"], told["since"]) == (None, None)
  json.dumps(told, allow_nan=False)


def test_it_follows_the_files(tmp_path, folder):
  looks = status.LoopStatus(str(tmp_path))
  _write(folder, ROUNDS[:2])
  assert len(looks.read()["days"]) == 1 and looks.read() is looks.read()
  _write(folder, ROUNDS)
  os.makedirs(folder / "promoted" / "8")
  Promotions(str(folder)).use(8)
  told = looks.read()
  assert len(told["days"]) == 2 and told["in_use"] == 8
  assert told["since"] == pytest.approx(os.stat(folder / "promoted.json").st_mtime)
  rewards = tmp_path / "live" / "proposer"
  os.makedirs(rewards)
  lines = [{"step": n, "reward/expected": 4.0, "reward/taken": 5.0} for n in (1, 2)]
  (rewards / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  assert looks.read()["rewards"] == {"expected": 8.0, "taken": 10.0}


def test_a_long_file_is_read_from_its_end(tmp_path, folder, monkeypatch):
  monkeypatch.setattr(status, "_MOST", 600)
  _write(folder, ROUNDS * 5)
  assert status.LoopStatus(str(tmp_path)).read()["days"][-1]["day"] == FIRST + DAY
