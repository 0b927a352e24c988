"""The page of a trained run, as a person meets it: a customer, the history, the ads, the beams,
the charts.
"""

import dataclasses
import math

import pytest

from gr4ad_jax.answering.messages import Query
from gr4ad_jax.config import load_config
from tests import tiny
from tests.serving.browser import Visit, chromium, served

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compile_cache")]


@pytest.fixture(scope="module")
def driver():
  with chromium() as driver:
    yield driver


@pytest.fixture(scope="module")
def workdir(driver, tmp_path_factory):
  """A trained run; asks for the driver so that nothing is trained where there is none."""
  folder = tiny.write_log(tmp_path_factory.mktemp("log"))
  arguments = (
    "--max_steps=2",
    "--noevaluate",
    "--layers=1",
    "--lazy_layers=0",
    f"--workdir={folder}/run",
  )
  assert tiny.run("train", *tiny.source_flags(folder), *tiny.SETTINGS, *arguments).status == 0
  return str(folder / "run")


def test_a_trained_run_is_shown(driver, workdir):
  from gr4ad_jax.engine.engine import ServingEngine

  config = load_config(workdir)
  serving = dataclasses.replace(config.serving, buckets=(1,), tabs=False, deadline_ms=60_000.0)
  with (
    ServingEngine(workdir, dataclasses.replace(config, serving=serving)) as engine,
    served(engine) as address,
  ):
    visit = Visit(driver, address)
    visit.pick("u3")
    assert len(visit.all("#history li")) == len(engine.history("u3", 200))
    visit.ask()
    found = engine.recommend(Query(user="u3", k=10)).ads
    assert len(found) == 8  # what the last beam width holds
    numbers = [float(cell.strip().rstrip("%")) for cell in visit.all("#ads td.number")]
    found = sorted(found, key=lambda ad: ad["seen"])  # what is new stands first
    for ad, row in zip(found, visit.all("#ads tr[data-key]"), strict=True):
      assert ad["text"] in row and "-".join(map(str, ad["codes"])) in row
    assert numbers[::3] == pytest.approx([100 * math.exp(ad["log_p"]) for ad in found], rel=0.01)
    assert numbers[1::3] == pytest.approx([ad["score"] for ad in found], abs=0.01)
    assert numbers[2::3] == pytest.approx([ad["ecpm"] for ad in found], abs=0.01)
    assert len(visit.all("#tree .leaf")) == 8
    visit.wait("#status", "Ready · checkpoint 2 · 24 ads · beams 8-8-8")
    visit.wait("#charts figure:nth-child(3)", "8 at the last level")
    visit.ask()
    visit.wait("#facts", "from the cache")
    assert visit.complaints() == []
    assert visit.hosts_asked() == {address.removeprefix("http://")}
