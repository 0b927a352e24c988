"""Lines of progress of what is done between steps."""

import pytest

from experiments import progress


@pytest.fixture
def clock(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  return now


def test_rate_and_eta_are_told_now_and_then(clock, capsys):
  told = progress.RoundProgress(every_seconds=10)
  for done in range(0, 101, 10):
    told("ads", done, 100)
    clock[0] += 4
  lines = capsys.readouterr().out.splitlines()
  assert (
    lines[1] == "ads 30/100  2/s  ETA 0:28"
    and lines[-1] == "ads 100/100  2/s  ETA 0:00"
    and len(lines) == 5
  )


def test_what_is_soon_done_is_passed_over(clock, capsys):
  told = progress.RoundProgress(every_seconds=10, quiet_seconds=5)
  for done in (0, 50, 100):
    told("events", done, 100)
    clock[0] += 1
  assert capsys.readouterr().out == ""
  for done in (0, 50, 100):
    told("ads", done, 100)
    clock[0] += 6
  assert capsys.readouterr().out.splitlines() == [
    "ads 50/100  8/s  ETA 0:06",
    "ads 100/100  8/s  ETA 0:00",
  ]
