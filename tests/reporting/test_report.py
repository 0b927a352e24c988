"""The report of a run: by the binary, opened in a browser; and what stops it."""

import shutil

import pytest

from tests import tiny
from tests.serving.browser import chromium

pytestmark = pytest.mark.usefixtures("compile_cache")


@pytest.mark.long
def test_a_runs_report_opens_in_a_browser(small_run, tmp_path):
  run = tmp_path / "run"
  shutil.copytree(small_run, run)
  done = tiny.run("risks", f"--workdir={run}", "--study=reasons", "--lists=3")
  assert (done.status, done.err) == (0, "")
  out = tmp_path / "report.html"
  done = tiny.run("report", f"--workdir={run}", f"--out={out}", "--customers=3")
  assert (done.status, done.err) == (0, "") and f"written to {out}" in done.out
  assert "http" not in out.read_text().replace("http-equiv", "")
  with chromium() as driver:
    driver.get(f"file://{out}")
    headings = [e.text for e in driver.find_elements("css selector", "h2")]
    assert headings == [
      "In short", "Charts", "Tables", "Are the reasons faithful?", "3 customers", "Settings",
    ]  # fmt: skip
    assert len(driver.find_elements("css selector", "article")) == 3
    widths = driver.execute_script("return [...document.images].map((i) => i.naturalWidth)")
    assert len(widths) == 3 and min(widths) > 100
    assert "of its probability" in driver.find_element("css selector", "td.words").text


def test_a_bad_place_is_refused_before_any_work(small_run, tmp_path):
  for out in (tmp_path, tmp_path / "nowhere" / "report.html"):
    done = tiny.run("report", f"--workdir={small_run}", f"--out={out}")
    assert done.status == 2 and done.err.startswith(f"error: --out={out} is not allowed")
    assert done.err.count("\n") == 1
