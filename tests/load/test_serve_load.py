"""The measurement of a server under load, against a server whose capacity is known."""

import json
import pathlib
import sys

import pytest

from gr4ad_jax.load import load_report, serve_load
from gr4ad_jax.load.http_load import Outcome, Phase
from tests.load import fake_server
from tests.timing import undisturbed

COMMAND = (sys.executable, str(pathlib.Path(fake_server.__file__)))


def _outcome(due, seconds=0.01, status=200, source="model", width=8, retry_after=False):
  return Outcome(due, 0.0, seconds, status, source if status == 200 else "", width, retry_after)


@pytest.mark.long
def test_the_suite_measures_both_servers_and_draws_them(tmp_path):
  pytest.importorskip("matplotlib")
  told, out = [], tmp_path / "serve.json"

  def measured():
    told.clear()
    found = serve_load.run_suite("any", 0.05, str(out), command=COMMAND, told=told.append)
    tabs, fixed = found["tabs"], found["fixed"]
    most = 1 / fake_server.SEARCH
    assert 0.01 * most < found["capacity"]["tabs"] <= 1.1 * most
    assert found["capacity"]["fixed"] < found["capacity"]["tabs"]
    over = tabs["phases"]["overload"]
    assert (
      over["refused"] > 0 and over["accepted_per_s"] <= 1.5 * most and tabs["holds"]["no_errors"]
    )
    assert over["refused_ms"]["p50"] < over["accepted_ms"]["p50"]
    assert (over["mean_width"], fixed["phases"]["overload"]["mean_width"]) == (64, 128)
    return found

  found = undisturbed(measured)
  tabs, fixed = found["tabs"], found["fixed"]
  assert (
    len(told) == 4 and tabs["target_ms"] == 40 and tabs["exit_status"] == fixed["exit_status"] == 0
  )
  assert json.loads(out.read_text()) == found
  assert (tmp_path / "serve.png").read_bytes().startswith(b"\x89PNG")
  assert list(tabs["phases"]) == ["idle", "steady", "overload", "recovery", "long"]
  assert list(fixed["phases"]) == ["idle", "steady", "overload", "recovery"]
  assert tabs["phases"]["long"]["memory_mib"]["last"] > 1
  words = serve_load.in_words(found)
  assert (
    words.startswith(f"tabs: {found['capacity']['tabs']:.1f} requests/s at most")
    and "recovers: " in words
  )
  assert sum(point["requests"] for point in tabs["seconds"]) == sum(
    p["requests"] for p in tabs["phases"].values()
  )


def test_a_server_that_does_not_start_is_told():
  with pytest.raises(RuntimeError, match="the server did not start: error: no run lies there"):
    with serve_load.Server(
      "any", command=(sys.executable, "-c", "print('error: no run lies there')")
    ):
      pass
  with pytest.raises(RuntimeError, match="the server did not start: it wrote nothing"):
    with serve_load.Server(
      "any", command=(sys.executable, "-c", "import time; time.sleep(60)"), patience=0.5
    ):
      pass


def test_a_server_is_told_to_end():
  with serve_load.Server("any", command=COMMAND) as server:
    assert server.address.startswith("http://127.0.0.1:") and server.memory() > 2**20
  assert server.status == 0


def test_a_stretch_of_time_is_summed_up():
  outcomes = [_outcome(n / 100, seconds=n / 1000) for n in range(101)]
  outcomes += [
    _outcome(1.5, 0.002, 503, retry_after=True),
    _outcome(1.6, 0.004, 503),
    _outcome(1.7, status=500),
  ]
  outcomes += [
    _outcome(1.8, status=0),
    _outcome(1.9, source="fallback"),
    _outcome(1.95, source="cache", width=28),
  ]
  found = load_report.summary(outcomes, 2.0)
  counts = {
    "requests": 107,
    "accepted": 102,
    "fallback": 1,
    "refused": 2,
    "refused_without_retry_after": 1,
    "errors": 2,
  }
  assert {name: found[name] for name in counts} == counts
  assert found["offered_per_s"] == 53.5 and found["accepted_per_s"] == 51
  assert found["accepted_ms"]["p50"] == pytest.approx(49.5) and found["accepted_ms"][
    "most"
  ] == pytest.approx(100)
  assert found["refused_ms"]["p50"] == pytest.approx(3)
  assert found["mean_width"] == pytest.approx((101 * 8 + 28) / 102)
  empty = load_report.summary([], 2.0)
  assert empty["requests"] == 0 and empty["accepted_ms"] is None and empty["mean_width"] is None


def _report(recovery=(), **overload):
  """Two seconds of overload and four of recovery, whose outcomes are given by second."""
  over = [_outcome(0.5, **overload), _outcome(1.5, 0.001, 503, retry_after=True)]
  late = [_outcome(2.5 + second, **what) for second, what in enumerate(recovery)]
  phases = [Phase("overload", 1, 2.0), Phase("recovery", 1, 4.0)]
  return load_report.report(
    load_report.Load(phases, over + late, [(0.0, 2**20), (3.0, 3 * 2**20)], 0.04)
  )


@pytest.mark.parametrize(
  ("recovery", "seconds"),
  [
    ([{}, {}, {}, {}], 0),
    ([{"status": 503}, {"seconds": 0.09}, {"seconds": 0.079}, {}], 2),
    ([{}, {}, {"status": 0}, {}], 3),
    ([{}, {}, {}, {"status": 503}], None),
  ],
)
def test_recovery_is_the_time_until_all_is_well(recovery, seconds):
  found = _report(recovery)
  assert found["phases"]["recovery"]["seconds_until_steady"] == seconds
  assert found["holds"]["recovers"] == (seconds is not None)
  assert found["phases"]["overload"]["memory_mib"] == {"first": 1, "last": 1, "most": 1}
  assert found["phases"]["recovery"]["memory_mib"]["most"] == 3


def test_promises_are_checked():
  kept = _report([{}], seconds=0.08)["holds"]
  assert all(kept.values()) and len(kept) == 5
  assert not _report([{}], seconds=0.081)["holds"]["overload_p99_within_twice_the_target"]
  assert not _report([{}], status=500)["holds"]["no_errors"]
  refused = _report([{}], status=503, seconds=0.05)["holds"]
  assert not refused["refused_within_the_target"] and not refused["refused_with_retry_after"]
  grown = {"errors": 0, "memory_mib": {"first": 100.0, "last": 106.0, "most": 106.0}}
  assert load_report.holds({"long": grown}, 0.04) == {"no_errors": True, "memory_flat": False}
