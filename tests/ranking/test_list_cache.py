"""A ranking that is kept is read back where it follows from the same settings, and only there."""

import numpy as np
import pytest

from gr4ad_jax.ranking import list_cache


@pytest.fixture
def ask(tmp_path):
  """Asks for a ranking; the n-th one that is made is of ad n alone."""
  made = []

  def asked(split, **settings):
    def make():
      made.append(settings)
      return np.full((2, 3), len(made), np.int32)

    return list_cache.kept(str(tmp_path), split, settings, make)

  asked.made = made
  return asked


def test_other_settings_are_made_anew_and_the_same_are_read(ask):
  assert (ask("test", beams=[4, 4], order="likelihood") == 1).all()
  assert (ask("test", order="likelihood", beams=[4, 4]) == 1).all()  # in any order
  assert (ask("test", beams=[4, 5], order="likelihood") == 2).all()
  assert (ask("test", beams=[4, 5], order="likelihood") == 2).all()
  assert (ask("test", beams=[4, 4], order="likelihood") == 3).all()  # the latest is kept
  assert [made["beams"] for made in ask.made] == [[4, 4], [4, 5], [4, 4]]


def test_each_split_has_its_own(ask):
  found = [int(ask(split, beams=4)[0, 0]) for split in ("valid", "test", "valid", "test")]
  assert found == [1, 2, 1, 2]
