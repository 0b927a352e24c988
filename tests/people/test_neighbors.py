"""Neighbours that follow visits: which visits a group's neighbours know, their cosines, and rows of
other processes.
"""

import dataclasses
import math

import numpy as np
import pytest

from gr4ad_jax.checksums import DamagedError
from gr4ad_jax.features.neighbors import CoVisitNeighbors, NeighborFolds
from gr4ad_jax.people import neighbors
from gr4ad_jax.people.neighbors import GrowingNeighbors

OLD = [(0, [0, 1]), (3, [1, 2])]  # the run's visits; numbers are not dense


def by_loops(visits, shrink=10.0):
  """{(ad, other): cosine} of visits, one pair after the other."""
  common, mass = {}, {}
  for ads in visits:
    weight = 1 / math.log2(2 + len(ads))
    for ad in ads:
      mass[ad] = mass.get(ad, 0.0) + weight
      for other in ads:
        if other != ad:
          common[ad, other] = common.get((ad, other), 0.0) + weight
  return {
    (a, b): shared / math.sqrt((mass[a] + shrink) * (mass[b] + shrink))
    for (a, b), shared in common.items()
  }


def as_dict(found):
  return {
    (ad, int(other)): float(found.cosine[ad, k])
    for ad, row in enumerate(found.ids)
    for k, other in enumerate(row)
    if other >= 0
  }


def growing(every):
  request = np.repeat([number for number, _ in OLD], [len(ads) for _, ads in OLD])
  ad = np.concatenate([ads for _, ads in OLD]).astype(np.int32)
  start = CoVisitNeighbors.fit(request, ad, 3, neighbors=4)
  start = dataclasses.replace(start, retriever="the run's towers")
  return GrowingNeighbors(NeighborFolds.of(start), request, ad, every)


def test_a_group_knows_the_newest_version_before_it():
  made = growing(every=3)
  new = [[3, 0, 3], [2, 0]], [[1, 3]], [[0, 2, 3]]
  for group, visits in enumerate(new):
    made.add(group, visits)
  assert [made.version_of(group) for group in range(3)] == [0, 0, 3] and made.version == 3
  assert as_dict(made.at(0).part(-1)) == pytest.approx(by_loops([[0, 1], [1, 2]]))
  known = [[0, 1], [1, 2], [3, 0], [2, 0], [1, 3]]  # an ad stands in a visit once
  assert as_dict(made.at(3).part(-1)) == pytest.approx(by_loops(known))
  assert made.at(3).part(-1).ids.shape == (4, 4)  # a row for the new ad
  assert made.at(3).part(-1).retriever == "the run's towers"  # no count, so it stays


def test_versions_that_nobody_knows_are_let_go():
  made = growing(every=1)
  for group in range(4):
    made.add(group, [[0, group]])
  fits = [made.at(version) for version in (1, 2, 3)]
  made.forget(2)
  assert made.version_of(1) == 0 and made.version_of(2) == 2
  assert made.at(2) is fits[1] and made.at(3) is fits[2]
  assert made.at(1) is not fits[0]


def test_without_a_schedule_they_stay_the_runs():
  made = growing(every=0)
  made.add(0, [[0, 5]] * 9)
  assert made.version == 0 and made.version_of(1) == 0
  assert made.at(0).part(-1).ids.shape == (3, 4)


def test_another_process_has_new_ads_in_other_rows(tmp_path):
  """Of the run's two ads and three later ones it knows two, in turned order behind one of its
  own.
  """
  ids = np.array([[2, 4], [3, -1], [0, 1], [1, 4], [0, 3]], np.int32)
  cosine = np.arange(1, 11, dtype=np.float32).reshape(5, 2)
  saved = CoVisitNeighbors(ids, cosine)
  neighbors.save(str(tmp_path / "kept"), saved, 7, ["new-a", "new-b", "gone"])
  rows = {"new-a": 4, "new-b": 3}
  found, version = neighbors.load(str(tmp_path / "kept"), rows.get)
  assert version == 7
  expected = {
    (0, 4): 1.0, (1, 3): 3.0, (4, 0): 5.0, (4, 1): 6.0, (3, 1): 7.0,
  }  # fmt: skip
  assert as_dict(found) == expected and found.ids.shape == (5, 2)
  assert (found.cosine[found.ids < 0] == 0).all()


def test_what_was_damaged_is_named(tmp_path):
  neighbors.save(str(tmp_path / "kept"), growing(1).at(0).part(-1), 0, [])
  path = tmp_path / "kept" / "neighbors.npz"
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(DamagedError, match=r"neighbors\.npz"):
    neighbors.load(str(tmp_path / "kept"), lambda _: None)
