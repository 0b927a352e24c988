"""Metrics of a round against loops."""

import numpy as np
import pytest

from gr4ad_jax.evaluation.protocols import EvalRequests
from gr4ad_jax.learning import prequential


def test_metrics_of_each_name_equal_loops():
  taken = [{3: 2.0, 4: 6.0}, {5: 1.0}]
  requests = EvalRequests(
    "test", np.arange(2), np.arange(2), np.array([0, 2, 3]), np.array([3, 4, 5]),
    np.array([2.0, 6.0, 1.0], np.float32),
  )  # fmt: skip
  lists = {"candidate": [[4, 9, 8], [1, 5, 2]], "start": [[7, 9, 8], [5, 1, 2]]}
  arrays = {name: np.array([row + [-1] * 7 for row in rows]) for name, rows in lists.items()}
  found = prequential.scalars(arrays, requests, 1_291_161_600)
  assert found["prequential/time"] == 1_291_161_600 and found["prequential/requests"] == 2
  for name, rows in lists.items():
    hits = [[ad for ad in row if ad in of] for row, of in zip(rows, taken, strict=True)]
    recall = np.mean([len(h) / len(of) for h, of in zip(hits, taken, strict=True)])
    money = sum(of[ad] for h, of in zip(hits, taken, strict=True) for ad in h)
    total = sum(sum(of.values()) for of in taken)
    assert found[f"prequential/{name}_recall@10"] == pytest.approx(recall)
    assert found[f"prequential/{name}_revenue@10"] == pytest.approx(money / total)
