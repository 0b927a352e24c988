import numpy as np
import pytest
import scipy.sparse

from gr4ad_jax import config
from gr4ad_jax.data import schema
from gr4ad_jax.evaluation import baselines, metrics, protocols
from tests.evaluation import loops


def rank(dataset, name, k=6, split="test"):
  return (
    baselines.Baselines(dataset, protocols.eval_requests(dataset, split)).rank(name, k).tolist()
  )


# Lines of the shop's history at test: ad 1 three times; ad 3 twice; ads 0, 2 and 4 once; ad 5
# never.
def test_popularity_counts_lines_and_breaks_ties_by_row(shop):
  assert rank(shop, "popularity") == [[1, 3, 0, 2, 4, 5]] * 2
  assert rank(shop, "popularity", split="valid") == [[1, 3, 4, 0, 2, 5]] * 2


def test_personal_frequency_counts_visits(shop):
  # User 0: ad 3 in two visits, ads 1 and 2 in one; the rest by popularity. User 1: ads 1 and 0
  # once.
  assert rank(shop, "personal_frequency") == [[3, 1, 2, 0, 4, 5], [1, 0, 3, 2, 4, 5]]


def test_personal_recency_prefers_late_visits(shop):
  # User 0: ad 3 has .9 + .81, ad 2 1, ad 1 .81. User 1: ad 0 1, ad 1 .9.
  assert rank(shop, "personal_recency") == [[3, 2, 1, 0, 4, 5], [0, 1, 3, 2, 4, 5]]
  assert rank(shop, "personal_recency", split="valid") == [[3, 1, 4, 0, 2, 5], [1, 3, 4, 0, 2, 5]]


def test_personal_revenue_recency_weighs_by_clipped_value(shop):
  # User 0: ad 2 about 85 after the clip, ad 3 .9 * 7 + .81 * 5, ad 1 .81.
  assert rank(shop, "personal_revenue_recency") == [[2, 3, 1, 0, 4, 5], [0, 1, 3, 2, 4, 5]]


def test_ease_weights_are_the_ridge_regression_without_self():
  """Column j of the weights solves the ridge regression of ad j on the other ads."""
  binary = (np.random.default_rng(0).random((40, 5)) < 0.5).astype(np.float32)
  weights = baselines.ease_weights(scipy.sparse.csr_matrix(binary), 2.0)
  for j in range(5):
    others = [i for i in range(5) if i != j]
    x = binary[:, others]
    expected = np.linalg.solve(x.T @ x + 2.0 * np.eye(4), x.T @ binary[:, j])
    np.testing.assert_allclose(weights[others, j], expected, atol=1e-5)
    assert weights[j, j] == 0


def test_ease_follows_co_occurrence_and_recency_adds_to_it(make_dataset):
  rows = []
  for user in range(4):  # ads 2 and 3 go together
    rows += [(user, user, 2, 1, "train"), (user, user, 3, 1, "train")]
  rows += [(4, 4, 0, 1, "train"), (5, 5, 3, 1, "train"), (5, 6, 1, 1, "test")]
  dataset = make_dataset(rows, num_ads=5)
  assert rank(dataset, "ease", k=2) == [[2, 3]]  # what goes with ad 3, not ad 3 itself
  assert rank(dataset, "ease_plus_recency", k=2) == [[3, 2]]


def test_directed_neighbors_follow_the_order_of_the_log(make_dataset):
  rows = []
  for user in range(3):  # ad 2, then ad 3, then ad 4
    rows += [(user, 3 * user + step, 2 + step, 1, "train") for step in range(3)]
  rows += [
    (3, 9, 3, 1, "train"),
    (3, 10, 0, 1, "test"),
    (4, 11, 2, 1, "train"),
    (4, 12, 1, 1, "test"),
  ]
  dataset = make_dataset(rows, num_ads=5)
  assert rank(dataset, "directed_neighbors", k=2) == [
    [4, 2],
    [3, 4],
  ]  # after ad 3 only ad 4; the rest by popularity


def test_user_without_history_gets_popular_ads(make_dataset):
  rows = [(0, 0, 2, 1, "train"), (0, 1, 2, 1, "train"), (0, 1, 1, 1, "train"), (1, 2, 0, 1, "test")]
  dataset = make_dataset(rows, num_ads=3)
  for name in baselines.NAMES:
    assert rank(dataset, name, k=3) == [[2, 1, 0]], name


def test_list_longer_than_the_catalogue_is_padded(shop):
  assert rank(shop, "popularity", k=8) == [[1, 3, 0, 2, 4, 5, -1, -1]] * 2


def test_chunks_leave_the_ranking_unchanged(shop, monkeypatch):
  whole = [rank(shop, name) for name in baselines.NAMES]
  monkeypatch.setattr(baselines, "CHUNK_CELLS", 1)
  assert [rank(shop, name) for name in baselines.NAMES] == whole


def test_large_catalogue_skips_ease_with_a_reason(shop, monkeypatch):
  monkeypatch.setattr(baselines, "EASE_MAX_ADS", 5)
  rankings, skipped = baselines.rank_all(
    baselines.Baselines(shop, protocols.eval_requests(shop, "test")), 3
  )
  assert list(rankings) == [name for name in baselines.NAMES if not name.startswith("ease")]
  assert set(skipped) == {"ease", "ease_plus_recency"}
  assert "6 ads are above its limit, 5" in skipped["ease"]


def test_unknown_name(shop):
  with pytest.raises(ValueError, match="'random' is unknown; allowed: popularity"):
    rank(shop, "random")


# Reference test scores of the protocol: recall@10, ndcg@10, recall@50, revenue@10, revenue@50.
REFERENCE = {
  "popularity": (0.0870, 0.0953, 0.1481, 0.0631, 0.1646),
  "personal_frequency": (0.2797, 0.2843, 0.3724, 0.1969, 0.3879),
  "personal_recency": (0.2784, 0.2809, 0.3776, 0.1940, 0.3898),
  "personal_revenue_recency": (0.2458, 0.2405, 0.3640, 0.2057, 0.3948),
  "ease": (0.2018, 0.1985, 0.3356, 0.1361, 0.3450),
  "ease_plus_recency": (0.2721, 0.2737, 0.3885, 0.1885, 0.3948),
}


@pytest.mark.slow
@pytest.mark.long
def test_online_retail_baselines_reach_their_reference_scores(tmp_path):
  pytest.importorskip("tensorflow_datasets")
  from gr4ad_jax.builders import prepare

  dataset = prepare.load_dataset(config.DataConfig(dataset="online_retail", data_dir=str(tmp_path)))
  requests = protocols.eval_requests(dataset, "test")
  before_test = dataset.events.split < schema.SPLITS.index("test")
  counts = (
    len(dataset.events.user_id),
    len(dataset.ads),
    int(before_test.sum()),
    len(np.unique(requests.user)),
  )
  assert counts == (4907, 3740, 471461, 2513)
  assert len(requests.target_ad) / len(requests) == pytest.approx(19.4, abs=0.05)
  rankings, skipped = baselines.rank_all(baselines.Baselines(dataset, requests), 50)
  assert not skipped
  for name, expected in REFERENCE.items():
    found = metrics.per_request(rankings[name], requests, (10, 50))
    measured = [
      found[m].value for m in ("recall@10", "ndcg@10", "recall@50", "revenue@10", "revenue@50")
    ]
    np.testing.assert_allclose(measured, expected, atol=2e-4, err_msg=name)


def scores_by_hand(dataset, split, name, user):
  """A simple method's scores of all ads for a user, from its definition; a line at a time."""
  history = loops.history(dataset, split)
  num_ads = len(dataset.ads)
  own = [(request, ad, value) for (who, request, ad), value in history.items() if who == user]
  visits = sorted({request for request, _, _ in own})
  ago = {request: len(visits) - 1 - n for n, request in enumerate(visits)}
  score = np.zeros(num_ads)
  if name == "popularity":
    for _, _, ad in history:
      score[ad] += 1
  elif name == "personal_frequency":
    for _, ad, _ in own:
      score[ad] += 1
  elif name == "personal_recency":
    for request, ad, _ in own:
      score[ad] += 0.9 ** ago[request]
  elif name == "personal_revenue_recency":
    clip = loops.percentile_99(history.values())
    for request, ad, value in own:
      score[ad] += min(value, clip) * 0.9 ** ago[request]
  elif name == "ease":
    taken = np.zeros((len(dataset.events.user_id), num_ads))
    for who, _, ad in history:
      taken[who, ad] = 1
    inverse = np.linalg.inv(taken.T @ taken + 200 * np.eye(num_ads))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    score = taken[user] @ weights
  elif name == "ease_plus_recency":
    recency = scores_by_hand(dataset, split, "personal_recency", user)
    score = scores_by_hand(dataset, split, "ease", user) + 0.2 * recency
  else:
    follows = np.zeros((num_ads, num_ads))
    lines = list(history)
    for i, (who, _, first) in enumerate(lines):
      for j in range(i + 1, min(i + 51, len(lines))):
        if lines[j][0] == who and lines[j][2] != first:
          follows[first, lines[j][2]] += 0.9 ** (j - i - 1)
    for age, (_, ad, _) in enumerate(reversed(own)):
      if age < 50:
        score += 0.8**age * follows[ad]
  return score


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("name", baselines.NAMES)
def test_scores_equal_a_loop(bazaar, name, split):
  """Whatever the history holds: lines of several events, users of more lines than a window, ads
  that nobody took.
  """
  requests = protocols.eval_requests(bazaar, split)
  fitted = baselines.Baselines(bazaar, requests)
  popularity = protocols.line_counts(bazaar, split)
  np.testing.assert_array_equal(fitted.popularity_N, popularity)
  columns = sorted(range(len(popularity)), key=lambda ad: (-popularity[ad], ad))
  users = np.unique(bazaar.events.user)
  found = getattr(fitted, name)(users)
  expected = np.stack([scores_by_hand(bazaar, split, name, user) for user in users])
  np.testing.assert_allclose(found, expected[:, columns], rtol=2e-4, atol=1e-7)
  if name == "directed_neighbors":
    assert (bazaar.events.user[protocols.history_events(bazaar, split)] == 0).sum() > 60
  for row, user in zip(fitted.rank(name, 7), requests.user, strict=True):
    wanted = sorted(range(13), key=lambda ad: (-np.float32(expected[user, ad]), columns.index(ad)))[
      :7
    ]
    np.testing.assert_allclose(expected[user, row], expected[user, wanted], rtol=2e-4, atol=1e-7)


def test_lines_beyond_the_window_are_not_followed(make_dataset):
  """Ad 1 stands 50 lines after ad 0, and ad 2 51 lines after it; of the 52 lines of another the
  last 50 count.
  """
  rows = [(0, n, ad, 1, "train") for n, ad in enumerate([0, *range(10, 59), 1, 2])]
  rows += [(1, 60 + n, ad, 1, "train") for n, ad in enumerate([3, 0, *range(100, 149)])] + [
    (1, 200, 5, 1, "test")
  ]
  rows += [
    (2, 201, 0, 1, "train"),
    (2, 202, 5, 1, "test"),
    (3, 203, 3, 1, "train"),
    (3, 204, 60, 1, "train"),
  ]
  dataset = make_dataset(rows, num_ads=150)
  fitted = baselines.Baselines(dataset, protocols.eval_requests(dataset, "test"))
  column = {ad: n for n, ad in enumerate(fitted._ad_of_column.tolist())}
  after_zero = fitted.directed_neighbors(np.array([2]))[0]
  assert after_zero[column[1]] == pytest.approx(0.9**49, rel=1e-5) and after_zero[column[2]] == 0
  late = fitted.directed_neighbors(np.array([1]))[0]
  assert late[column[1]] == pytest.approx(0.8**49 * 0.9**49, rel=1e-4)  # ad 0 was 49 lines ago
  assert late[column[60]] == 0  # ad 3, 50 lines ago, has no say


def test_a_catalogue_at_the_limit_is_ranked_by_ease(shop, monkeypatch):
  assert baselines.EASE_MAX_ADS == 20_000  # as docs/design/limits.md says
  monkeypatch.setattr(baselines, "EASE_MAX_ADS", 6)
  assert not baselines.rank_all(
    baselines.Baselines(shop, protocols.eval_requests(shop, "test")), 3
  )[1]


def test_a_penalty_that_leaves_ease_singular_is_told():
  ones = scipy.sparse.csr_matrix(np.ones((3, 4), np.float32))
  with pytest.raises(ValueError, match="not positive definite at penalty -1.0; it must be above 0"):
    baselines.ease_weights(ones, -1.0)
