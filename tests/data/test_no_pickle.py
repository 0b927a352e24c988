"""A run's files hold plain arrays: one with pickled objects, which could run code, is refused."""

import numpy as np
import pytest

from gr4ad_jax.data.ad_store import load_ads
from gr4ad_jax.features.neighbors import CoVisitNeighbors, NeighborFolds
from gr4ad_jax.features.trends import Trends

PICKLED = np.array([None, "text"], object)


@pytest.mark.parametrize(
  ("name", "load", "fields"),
  [
    ("ads", load_ads, ("price", "created")),
    ("neighbors", CoVisitNeighbors.load, ("ids", "cosine")),
    ("folds", NeighborFolds.load, ("ids", "cosine")),
    ("trends", Trends.load, ("origin", "width", "seen", "repeats", "value")),
  ],
)
def test_pickled_objects_are_refused(tmp_path, name, load, fields):
  CoVisitNeighbors(np.zeros((2, 1), np.int32), np.zeros((2, 1), np.float32)).save(str(tmp_path))
  (tmp_path / "SHA256SUMS").unlink()  # without it files are not compared with what was written
  np.savez(tmp_path / f"{name}.npz", **dict.fromkeys(fields, PICKLED))
  with pytest.raises(ValueError, match="allow_pickle=False"):
    load(str(tmp_path))
