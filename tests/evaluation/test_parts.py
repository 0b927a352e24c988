"""A table in parts: what is taken again and what is new, against loops over the log."""

import numpy as np
import pytest

from gr4ad_jax.evaluation import baselines, parts, protocols, report_tables
from tests.evaluation import loops

K = 50


def without(runs, dataset, requests):
  """Lists without the ads seen before, -1 behind."""
  known, found = loops.known(dataset), []
  for run in runs:
    lists = [
      [ad for ad in row if ad >= 0 and int(ad) not in known[int(request)]]
      for row, request in zip(run, requests.request, strict=True)
    ]
    found.append(np.array([row + [-1] * (K - len(row)) for row in lists], np.int32))
  return found


@pytest.mark.parametrize("days", [0.0, 1.5])
def test_what_was_seen_before_is_that_of_a_loop(bazaar, days):
  requests = protocols.eval_requests(bazaar, "test")
  events = bazaar.events
  spaced = type(bazaar)(
    **vars(bazaar) | {"events": type(events)(**vars(events) | {"time": events.request * 86_400})}
  )
  found = parts.seen_before(spaced, requests, days)
  known = loops.known(spaced, days)
  for row, request in enumerate(requests.request):
    assert set(found.row_E[found.request_E == row].tolist()) == known[int(request)]
  if days:
    assert len(found.row_E) < len(parts.seen_before(spaced, requests).row_E)


def test_every_part_equals_a_loop(bazaar):
  """Both ways of scoring new targets: lists that were made without seen ads, and what is left."""
  requests = protocols.eval_requests(bazaar, "test")
  number, known = len(requests), loops.known(bazaar)
  ranked = {
    "gr4ad": [loops.random_rankings(seed, number, 13, K) for seed in (0, 1)],
    "other": [loops.random_rankings(2, number, 13, K)],
  }
  made = {"gr4ad": without([loops.random_rankings(s, number, 13, K) for s in (7, 8)], bazaar,
                           requests)}  # fmt: skip
  memory = loops.random_rankings(5, number, 13, K)[:, :5]
  memory = np.pad(memory, ((0, 0), (0, K - 5)), constant_values=-1)
  found = report_tables.results(bazaar, "test", ranked, unseen=made, memory_RK=memory)
  remembered = {int(r): set(row.tolist()) for r, row in zip(requests.request, memory, strict=True)}
  told = {
    "all": (ranked, lambda r, ad: True),
    "again": (ranked, lambda r, ad: ad in known[r]),
    "new": (made | {"other": without(ranked["other"], bazaar, requests)},
            lambda r, ad: ad not in known[r]),
    "memory": (ranked, lambda r, ad: ad in remembered[r]),
    "beyond": (ranked, lambda r, ad: ad not in remembered[r]),
  }  # fmt: skip
  of_target = requests.request[requests.target_row].tolist()
  targets = list(zip(of_target, requests.target_ad.tolist(), strict=True))
  for part, (lists, counts) in told.items():
    alone, minus = loops.scored(bazaar, "test", lists, (10, 50), counts=counts)
    for system in ranked:
      for metric, score in found["systems"][system][part].items():
        assert score == pytest.approx(alone[system, metric], rel=1e-5), (part, system, metric)
    for metric, score in found["ahead"]["other"][part].items():
      lead = minus("gr4ad", "other", metric)
      assert score == pytest.approx(lead, rel=1e-4, abs=1e-9), (part, metric)
    share = np.mean([counts(*target) for target in targets])
    assert found["targets"][part]["count"] == pytest.approx(share)
    assert 0 < share < 1 or part == "all"


def test_a_part_without_a_target_is_left_out(make_dataset):
  rows = [(0, 0, 1, 1, "train"), (0, 1, 2, 1, "test"), (1, 2, 0, 1, "train"), (1, 3, 3, 1, "test")]
  dataset = make_dataset(rows, num_ads=4)
  lists = np.array([[2, 1] + [-1] * 48, [0, 3] + [-1] * 48], np.int32)
  found = report_tables.results(dataset, "test", {"mine": lists})
  assert list(found["systems"]["mine"]) == ["all", "new"]
  # In `new` the ad that the second user has is left out, and the hit moves up.
  assert found["systems"]["mine"]["all"]["ndcg@10"]["mean"] < 1
  assert found["systems"]["mine"]["new"]["ndcg@10"]["mean"] == 1
  assert "**again**" not in report_tables.format_table(found)


@pytest.mark.parametrize("name", baselines.NAMES)
def test_simple_methods_leave_out_what_they_are_told(bazaar, name):
  requests = protocols.eval_requests(bazaar, "test")
  fitted = baselines.Baselines(bazaar, requests)
  known = loops.known(bazaar)
  found = fitted.rank(name, 6, parts.seen_before(bazaar, requests))
  whole = fitted.rank(name, 13)
  for row, (ads, request) in enumerate(zip(whole, requests.request, strict=True)):
    left = [int(ad) for ad in ads if int(ad) not in known[int(request)]][:6]
    assert found[row].tolist() == left + [-1] * (6 - len(left))


def test_unseen_lists_are_checked_too(bazaar):
  requests = protocols.eval_requests(bazaar, "test")
  lists = loops.random_rankings(0, len(requests), 13, K)
  with pytest.raises(ValueError, match="system 'mine': rankings have 49 columns"):
    report_tables.results(bazaar, "test", {"mine": lists}, unseen={"mine": lists[:, :49]})
