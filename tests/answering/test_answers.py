"""From beams to what is answered: each number under its own name."""

import types

import numpy as np
import pytest

from gr4ad_jax.answering import answers
from gr4ad_jax.decoding.beam import Beams


def make_beams(**changes):
  """One request: two UA-SIDs below one prefix, one below another, an empty beam; ordered by what
  they are worth.
  """
  columns = {
    "leaf_BW": np.array([[4, 0, 2, -1]], np.int32),
    "logp_BW": np.array([[-3.0, -1.0, -2.5, -np.inf]]),
    "score_BW": np.array([[5.0, 4.0, -1.0, -np.inf]]),
    "value_BW": np.array([[9.0, 2.0, 0.5, 0.0]]),
    "spread_BW": np.array([[3.0, 4.0, 0.0, 0.0]]),
    "codes_BWT": np.array([[[1, 0], [0, 0], [1, 2], [0, 0]]], np.int32),
    "prefix_logp_BWT": np.array([[[-2.0, -3.0], [-0.5, -1.0], [-2.0, -2.5], [-np.inf, -np.inf]]]),
  }
  return Beams(**columns | changes)


def test_only_ads_that_are_there_gain_by_their_spread():
  # Ad 5 is another one of the first UA-SID.
  row_K, beam_K = np.array([8, 3, 5, -1]), np.array([0, 1, 0, 3])
  found = answers.optimism(make_beams(), 0, row_K, beam_K, 2.0)
  expected = {8: np.log(1 + 2 * 3 / 9), 3: np.log(1 + 2 * 4 / 2), 5: np.log(1 + 2 * 3 / 9)}
  assert found == pytest.approx(expected)
  assert answers.optimism(make_beams(), 0, row_K, beam_K, 0.0) == {}


def test_the_tree_tells_log_p_and_at_its_leaves_the_score():
  first, last = answers.beam_tree(make_beams(), 0)
  assert first == (
    {"codes": [0], "log_p": -0.5, "beams": 1},
    {"codes": [1], "log_p": -2.0, "beams": 2},
  )
  assert last == (  # likeliest first, whatever the order of the list
    {"codes": [0, 0], "log_p": -1.0, "beams": 1, "score": 4.0, "ecpm": 2.0},
    {"codes": [1, 2], "log_p": -2.5, "beams": 1, "score": -1.0, "ecpm": 0.5},
    {"codes": [1, 0], "log_p": -3.0, "beams": 1, "score": 5.0, "ecpm": 9.0},
  )


def test_an_ad_tells_log_p_score_and_value_in_the_lists_order():
  ad = types.SimpleNamespace(ad_id="a", text="tea", account_id="shop")
  catalog = types.SimpleNamespace(ad=lambda row: ad, codes_NT=np.arange(16).reshape(8, 2))
  rows = answers.ranked_rows(make_beams(), 0, np.array([7, 3, -1]), np.array([0, 2, 0]))
  assert rows == [(7, -3.0, 5.0, 9.0), (3, -2.5, -1.0, 0.5)]
  assert answers.ad_entry(catalog, {3}, *rows[1])["seen"]
  assert answers.ad_entry(catalog, {3}, *rows[0]) == {
    "ad_id": "a", "text": "tea", "account_id": "shop", "log_p": -3.0, "score": 5.0, "ecpm": 9.0,
    "codes": [14, 15], "seen": False,
  }  # fmt: skip


@pytest.mark.parametrize("name", ["logp_BW", "score_BW", "value_BW"])
def test_a_number_that_is_none_is_not_answered(name):
  answers.check_finite(make_beams())
  bad = getattr(make_beams(), name).copy()
  bad[0, 1] = np.nan
  with pytest.raises(answers.NotFinite):
    answers.check_finite(make_beams(**{name: bad}))
