"""The table of a replay, against loops over visits."""

import numpy as np
import pytest

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.studies import replay_table

KNOWN = 90
ADS = 120  # of which thirty are young


def groups(seed, size=30, first=0):
  """What a recorder keeps: two groups; every fifth visit is of a user without a history."""
  rng = np.random.default_rng(seed)
  for number in range(2):
    targets = [np.sort(rng.choice(ADS, rng.integers(1, 14), replace=False)) for _ in range(size)]
    seen = [np.sort(rng.choice(KNOWN, 8, replace=False)) if row % 5 else np.zeros(0, int)
            for row in range(size)]  # fmt: skip
    lists = {
      f"list_{name}": np.stack([np.append(rng.permutation(ADS)[:70], [-1] * 10) for _ in targets])
      for name in ("frozen", "learning")
    }
    yield {
      **lists,
      "visit": np.array([f"v{first + number * size + row}" for row in range(size)]),
      "user": np.array([f"u{rng.integers(9)}" for _ in targets]),
      "time": 1_291_200_000 + 86_400 * rng.integers(0, 60, size),  # December 2010, and later
      "target_start": np.append(0, np.cumsum([len(some) for some in targets])),
      "target_ad": np.concatenate(targets),
      "target_value": rng.random(sum(map(len, targets))).astype(np.float32),
      "seen_start": np.append(0, np.cumsum([len(some) for some in seen])),
      "seen": np.concatenate(seen),
      "known_ads": np.array(KNOWN),
    }


def told(found, name):
  """The metrics, visit by visit."""
  value = np.concatenate([one["target_value"] for one in found])
  most = np.float32(np.percentile(value, 99))
  shares = {"recall@10": [], "new recall@10": [], "young recall@50": []}
  earned, all_money = 0.0, 0.0
  for one in found:
    for row, ads in enumerate(one[f"list_{name}"]):
      here = slice(*one["target_start"][row : row + 2])
      seen = set(one["seen"][slice(*one["seen_start"][row : row + 2])].tolist())
      if not seen:
        continue
      wanted = one["target_ad"][here].tolist()
      money = dict(zip(wanted, np.minimum(one["target_value"][here], most), strict=True))
      ranked = [ad for ad in ads.tolist() if ad >= 0]
      shares["recall@10"].append(len(set(ranked[:10]) & set(wanted)) / min(10, len(wanted)))
      earned += sum(money.get(ad, 0.0) for ad in ranked[:10])
      all_money += sum(money.values())
      new = set(wanted) - seen
      if new:
        unseen = [ad for ad in ranked if ad not in seen]
        shares["new recall@10"].append(len(set(unseen[:10]) & new) / min(10, len(new)))
      young = {ad for ad in wanted if ad >= KNOWN}
      if young:
        shares["young recall@50"].append(len(set(ranked[:50]) & young) / min(50, len(young)))
  return {name: np.mean(some) for name, some in shares.items()} | {"revenue@10": earned / all_money}


def test_metrics_and_leads_are_those_of_a_loop():
  found = list(groups(0))
  one = replay_table.Replayed.of(found)
  results = replay_table.results(
    replay_table.joined({"frozen": [(one, "frozen")], "online": [(one, "learning")]})
  )
  assert results["visits"] == 48
  frozen, online = (told(found, name) for name in ("frozen", "learning"))
  for metric, value in frozen.items():
    assert results["scores"]["frozen"][metric]["mean"] == pytest.approx(value), metric
    lead = results["ahead"]["online"][metric]
    assert lead["mean"] == pytest.approx(online[metric] - value), metric
    assert lead["low"] < lead["mean"] < lead["high"]
  assert list(results["months"]) == ["2010-12", "2011-01"]
  assert list(results["scores"]["frozen"]) == list(replay_table.SHOWN)


def test_a_month_is_that_of_its_visits_alone():
  found = list(groups(1))
  whole = replay_table.Replayed.of(found)
  december = whole.time < 1_293_840_000
  part = replay_table.results(whole.take(np.flatnonzero(december)))["scores"]
  months = replay_table.results(whole)["months"]
  assert months["2010-12"]["frozen"]["ndcg@10"] == pytest.approx(part["frozen"]["ndcg@10"]["mean"])


def test_arms_are_compared_on_the_visits_that_all_have():
  one = replay_table.Replayed.of(groups(0))
  other = replay_table.Replayed.of(groups(0)).take(np.arange(40)[::-1])
  both = replay_table.joined({"a": [(one, "learning")], "b": [(other, "learning")]})
  assert len(both.visit) == 40
  np.testing.assert_array_equal(both.lists["a"][0], both.lists["b"][0])
  text = replay_table.format_markdown(replay_table.results(both))
  assert "40 visits of" in text and "| less a" in text and "+.0000 [+.0000, +.0000]" in text
  with pytest.raises(DataError, match="no visit in common"):
    replay_table.joined(
      {
        "a": [(one, "learning")],
        "b": [(replay_table.Replayed.of(groups(0, first=999)), "learning")],
      }
    )


def test_seeds_are_averaged_visit_by_visit():
  """Two learners of the same visits, which came to the second one in another order."""
  found = list(groups(0))
  others = []
  for one in found:
    # Turned round, but for the padding at the end.
    turned = {
      name: np.hstack([one[name][:, 69::-1], one[name][:, 70:]])
      for name in ("list_frozen", "list_learning")
    }
    others.append(one | turned)
  first, second = (replay_table.Replayed.of(some) for some in (found, others))
  second = second.take(np.arange(len(second.visit))[::-1])
  arms = {
    name: [(one, which) for one in (first, second)]
    for name, which in (("frozen", "frozen"), ("online", "learning"))
  }
  results = replay_table.results(replay_table.joined(arms))
  assert results["seeds"] == 2
  for name, which in (("frozen", "frozen"), ("online", "learning")):
    seeds = [told(some, which) for some in (found, others)]
    for metric in seeds[0]:
      mean = np.mean([one[metric] for one in seeds])
      assert results["scores"][name][metric]["mean"] == pytest.approx(mean), metric
      assert seeds[0][metric] != seeds[1][metric], metric
  assert "Means of 2 seeds" in replay_table.format_markdown(results)


def test_the_picture_has_a_line_an_arm(tmp_path):
  pytest.importorskip("matplotlib")
  one = replay_table.Replayed.of(groups(0))
  replay_table.plot(replay_table.results(one), str(tmp_path / "months.png"))
  assert (tmp_path / "months.png").read_bytes().startswith(b"\x89PNG")
