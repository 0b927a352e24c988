"""A ranking whose numbers are none is no answer."""

import numpy as np
import pytest

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.decoding.ranker import Ranking

AD = np.array([[3, 0, -1], [1, -1, -1]])


def columns():
  """log p, values and scores; padding holds what it likes."""
  return [np.array([[-1.0, -2.0, -np.inf], [-3.0, np.nan, np.inf]]) for _ in range(3)]


def test_padding_may_hold_anything():
  assert (Ranking(AD, *columns()).ad_RK == AD).all()


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0)])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_every_number_of_every_ad_is_finite(which, place, number):
  found = columns()
  found[which][place] = number
  with pytest.raises(
    DataError, match=f"the model's {('logp', 'value', 'score')[which]} of an ad is {number}"
  ):
    Ranking(AD, *found)
