"""Reasons of a trained run: facts of the user's log, by the binary and in Python."""

import json
import shutil
import types

import numpy as np
import pytest

from gr4ad_jax.answering import printed
from gr4ad_jax.answering.recommender import Recommendation, Recommender
from gr4ad_jax.data import visits
from gr4ad_jax.features.neighbors import CoVisitNeighbors
from gr4ad_jax.reasons.reasoner import Reasoner
from tests import tiny

pytestmark = pytest.mark.usefixtures("compile_cache")


@pytest.fixture(scope="module")
def told(small_run):
  done = tiny.run(
    "recommend", f"--workdir={small_run}", "--user=u3", "--k=4", "--explain", "--json"
  )
  assert (done.status, done.err) == (0, "")
  return json.loads(done.out)["ads"]


def test_every_ad_of_the_list_is_explained(told):
  ads = told
  table, events = tiny.rows()
  text = {row[0]: row[1] for row in table}
  assert len(ads) == 4  # more than are explained at once
  taken = {row[1] for row in events if row[0] == "u3"}
  for ad in ads:
    why = ad["reasons"]
    assert sum(code["log_p"] for code in why["codes"]) == pytest.approx(ad["log_p"], abs=1e-4)
    lift = sum(code["lift"] for code in why["codes"])
    assert ad["log_p"] - lift == pytest.approx(why["log_p_without_context"], abs=1e-4)
    assert [code["code"] for code in why["codes"]] == ad["codes"]
    assert why["value"]["expected"] == pytest.approx(ad["ecpm"], rel=1e-4)
    assert why["value"]["chance"] == pytest.approx(np.exp(ad["log_p"]), abs=1e-6)
    assert why["value"]["low"] <= why["value"]["high"] and 0 <= why["copied"] <= 1
    carried = [slot["log_p"] for slot in why["slots"]]
    assert carried == sorted(carried, reverse=True) and min(carried) >= 0
    for slot in why["slots"]:
      assert slot["text"] == text[slot["ad_id"]]
      if slot["kind"] == "history":
        assert slot["ad_id"] in taken
    assert why["sentence"].startswith("New to the user") == (ad["ad_id"] not in taken)


def test_reasons_are_printed_within_the_width(told):
  shown = printed.reasons([Recommendation(**ad) for ad in told], 60)
  assert max(map(len, shown.splitlines())) <= 60
  words = " ".join(shown.split())
  for ad in told:
    assert ad["reasons"]["sentence"] in words
    assert f"with a chance of {ad['reasons']['value']['chance']:.2%}" in words


@pytest.fixture
def known():
  """What a reasoner without a model makes of a user who took the ads 5, 7 and 8."""
  day = 86_400
  now = 1_800_000_000
  taken = ((5, 40, 2), (5, 9, 2), (5, 2, 0), (7, 9, 1), (8, 1, 2))  # ad, days ago, depth
  ad, ago, depth = map(np.array, zip(*taken, strict=True))
  log = visits.ordered_log(
    np.array(["u"]), user=np.zeros(5, np.int32), ad=ad, time=now - ago * day, behavior=depth,
    value=np.ones(5), quantity=np.ones(5), request=np.arange(5), gap_seconds=1.0,
  )  # fmt: skip
  ids = np.full((9, 2), -1, np.int32)
  cosine = np.zeros((9, 2), np.float32)
  ids[7, 0], cosine[7, 0] = 3, 0.2  # 7 names 3, which does not name it
  ids[3], cosine[3] = [8, 1], [0.5, 0.9]
  about = lambda row: (f"ad{row}", f"text {row}" if row != 8 else "")  # noqa: E731
  reasoner = object.__new__(Reasoner)
  reasoner._neighbors = CoVisitNeighbors(ids, cosine)
  reasoner._behaviors = ("click", "cart", "purchase")
  reasoner._about = about
  batch = types.SimpleNamespace(
    slot_ad_BS=np.array([[5, 7, 3, -1]]), slot_kind_BS=np.array([[1, 1, 3, 0]])
  )
  carried = types.SimpleNamespace(
    copied_M=np.array([0.5]), slot_logp_MS=np.array([[0.2, 0.7, -0.1, 0.0]])
  )
  return lambda row, best: reasoner._known(carried, 0, best, batch, log, now, row)


def test_facts_are_those_of_the_log(known):
  bought = known(5, [1, 0])
  assert (bought.times, bought.behavior, bought.ago) == (2, "purchase", 9 * 86_400)  # no click
  assert (bought.strongest, bought.is_itself, bought.carried) == ("“text 7”", False, 0.7)
  assert known(5, [0]).is_itself and not bought.rises and bought.near == ()
  new = known(3, [])
  assert (new.times, new.behavior, new.ago, new.rises) == (0, "", None, True)
  assert new.near == ("“ad8”", "“text 7”")  # nearest first, by whichever of the two names the other
  assert (new.strongest, new.carried) == ("", 0.0)
  assert known(20, []).near == ()  # an ad that came after the neighbours


def test_a_model_of_single_ads_says_that_it_has_no_reasons(small_run, monkeypatch):
  recommender = Recommender.load(str(small_run))
  monkeypatch.setattr(
    "gr4ad_jax.answering.recommender.registry.build", lambda config, ads: object()
  )
  log = recommender.log_of(["ad01"], 1_800_000_000)
  with pytest.raises(ValueError, match="--model=gr4ad is not allowed here: object has no slots"):
    recommender.explained(log, 1_800_000_000, [])


@pytest.mark.long
def test_deletion_by_the_binary(small_run, tmp_path):
  run = tmp_path / "run"
  shutil.copytree(small_run, run)
  done = tiny.run("risks", f"--workdir={run}", "--study=reasons", "--lists=4")
  assert (done.status, done.err) == (0, "")
  found = json.loads((run / "eval" / "reasons.json").read_text())
  assert found["lists"] == 4 and found["counts"] == [1, 2, 4, 8, 16]
  first = found["drop"]["reasons"]
  assert set(found["drop"]) == {"reasons", "attention", "copy attention", "random"}
  # No context here has more slots than are asked about.
  assert found["asked"] == {"same": 1.0, "missed": 0.0} and "Of 100.00% of the ads" in done.out
  # One slot: the one that carries most by leave-one-out is the most that one deletion can take.
  assert all(row[0]["mean"] <= first[0]["mean"] + 1e-6 for row in found["drop"].values())
  # Sixteen slots are all that there are, so the order is of no matter.
  lasts = [row[-1]["mean"] for row in found["drop"].values()]
  assert max(lasts) - min(lasts) < 1e-4
  for name, row in found["ahead"].items():
    for n, score in enumerate(row):
      difference = first[n]["mean"] - found["drop"][name][n]["mean"]
      assert score["mean"] == pytest.approx(difference, abs=1e-6)
  assert "| reasons minus random" in done.out and f"written to {run}/eval/reasons.json" in done.out
