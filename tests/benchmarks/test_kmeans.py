"""The k-means suite measures both sides on the same points, and says what is missing."""

import json
import sys

import numpy as np
import pytest

from gr4ad_jax.benchmarks import kmeans


def test_catalogue_is_lopsided_unit_vectors():
  vectors = kmeans.catalogue(3000, 20, seed=0)
  assert vectors.dtype == np.float32 and vectors.shape == (3000, kmeans.WIDTH)
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
  np.testing.assert_array_equal(vectors, kmeans.catalogue(3000, 20, seed=0))
  near = (vectors @ vectors[:200].T > 0.5).mean(axis=0)  # share of ads in an ad's own category
  assert near.max() > 8 * max(near.min(), 1 / 3000)


def test_figures_of_both_sides():
  pytest.importorskip("faiss")
  told = []
  figures = kmeans.measure(2, 2000, told.append)
  assert len(told) == 4 and told[0].startswith("iteration 1, faiss: ")
  assert json.loads(json.dumps(figures)) == figures
  assert (
    figures["clusters"] == 32
    and len(figures["seconds"]["ours"]) == len(figures["seconds"]["faiss"]) == 2
  )
  assert figures["largest_over_mean"]["ours"] <= 1.2 < figures["largest_over_mean"]["faiss"]
  for distortion in figures["distortion"].values():
    assert distortion[0] > distortion[1] > distortion[2] > 0
  assert (
    figures["distortion_ratio"]
    == figures["distortion"]["ours"][2] / figures["distortion"]["faiss"][2]
  )
  text = kmeans.summary(figures)
  assert "2,000 x 256 into 32 clusters, 2 iterations" in text and "balanced over faiss" in text


def test_a_missing_peer_names_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "faiss", None)
  with pytest.raises(ImportError, match=r"gr4ad_jax\[peer\]"):
    kmeans.measure(1, 100, print)
