"""Records of lists: what they say, and what is no list."""

import numpy as np
import pytest

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.preference import list_records
from gr4ad_jax.requests.candidates import NO_REFERENCE
from tests.preference.rewarded import CODEBOOKS, record


def test_a_list_is_read():
  found = list_records.parse(record("me", 7, ("a3", "a1")), CODEBOOKS)
  assert (found.user_id, found.began, found.ads) == ("me", 7, ("a3", "a1"))
  np.testing.assert_array_equal(found.codes_CT, [[0, 0, 3], [0, 0, 1]])
  np.testing.assert_array_equal(found.reward_C, np.array([2, 1], np.float32))
  np.testing.assert_array_equal(found.reference_logp_C, np.array([-1.5, NO_REFERENCE], np.float32))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"user": None}, "user None is not allowed: text"),
    ({"began": None}, "began None is not allowed: a number, 0 to"),
    ({"began": True}, "began True"),
    ({"list": []}, "some candidates are needed"),
    ({"list": ["a0"]}, "each candidate is an object"),
    ({"list": [{"ad": 3}]}, "an ad of its own"),
    (record(ads=("a0", "a0")), "an ad of its own"),
    ({"list": [{"ad": "a0", "codes": [0, 0]}]}, r"codes \[0, 0\] are not allowed: a code of each"),
    ({"list": [{"ad": "a0", "codes": [0, 2, 0]}]}, r"codes \[0, 2, 0\]"),
    ({"list": [{"ad": "a0", "codes": [0, 0, 0]}]}, "reward None"),
    ({"list": [{"ad": "a0", "codes": [0, 0, 0], "reward": float("nan")}]}, "reward nan"),
    ({"list": [{"ad": "a0", "codes": [0, 0, 0], "reward": 1, "log_p": 2.0}]}, "log_p 2.0"),
  ],
)
def test_what_is_no_list_is_named(change, message):
  with pytest.raises(DataError, match=message):
    list_records.parse(record() | change, CODEBOOKS)
