"""The benchmark of training, on a log of ten users."""

import json
import signal

import pytest

from gr4ad_jax.load import serve_load
from tests import tiny

pytestmark = pytest.mark.usefixtures("compile_cache")


@pytest.mark.long
def test_figures_are_printed_and_written(tmp_path):
  source = tiny.write_log(tmp_path)
  out = tmp_path / "figures.json"
  done = tiny.run(
    "benchmark", *tiny.source_flags(source), *tiny.SETTINGS, "--max_steps=9", "--repetitions=2",
    f"--out={out}", "--peak_tflops=0.5",
  )  # fmt: skip
  assert (done.status, done.err) == (0, "")
  figures = json.loads(out.read_text())
  assert figures["repetitions"] == 2 and figures["shapes"]["D"] == 16
  second = figures["seconds"]
  assert 0 < second["batch"]["low"] <= second["batch"]["median"] <= second["batch"]["high"]
  assert figures["step_gflops"] == pytest.approx(
    figures["matmul_gflop_per_step"] / second["step"]["median"]
  )
  used = figures["cost"]["model_flops"] / second["step"]["median"] / figures["cost"]["peak_flops"]
  assert figures["utilization"] == pytest.approx(used)
  assert f"utilisation      {100 * used:.1f} % of the peak" in done.out
  assert figures["cost"]["model_flops"] == pytest.approx(1e9 * figures["matmul_gflop_per_step"])
  assert f"{figures['share_of_plain_dot']['median']:.2f} of the plain rate" in done.out
  assert not (tmp_path / "runs").exists()


def test_sigterm_ends_what_a_suite_has_started(small_run, monkeypatch):
  ended = []

  def suite(*_, **__):
    try:
      signal.raise_signal(signal.SIGTERM)
    finally:
      ended.append("the server")

  monkeypatch.setattr(serve_load, "run_suite", suite)
  before = signal.getsignal(signal.SIGTERM)
  try:
    done = tiny.run("benchmark", "--suite=serve", f"--workdir={small_run}")
  finally:
    signal.signal(signal.SIGTERM, before)
  assert ended == ["the server"] and done.status == 143
