"""Neighbours come and go with the checkpoint that they belong to."""

import dataclasses
import shutil

import numpy as np
import pytest

from gr4ad_jax.answering.messages import Query
from gr4ad_jax.engine.engine import ServingEngine
from gr4ad_jax.engine.neighbors_in_use import NeighborsInUse
from gr4ad_jax.features.neighbors import CoVisitNeighbors
from gr4ad_jax.learning.promotions import Promotions
from gr4ad_jax.people import neighbors
from tests.serving.runs import config_of


def of(ad, other, ads=3):
  """Neighbours of which one ad has one."""
  ids = np.full((ads, 1), -1, np.int32)
  ids[ad] = other
  return CoVisitNeighbors(ids, np.where(ids >= 0, np.float32(0.5), np.float32(0)))


def test_they_are_those_of_the_checkpoint_else_the_runs(tmp_path):
  own = dataclasses.replace(of(0, 1), retriever="the run's towers")
  neighbors.save(str(tmp_path / "8"), of(1, 2), 640, [])

  class Source:
    def neighbors(self, step):
      return str(tmp_path / "8") if step == 8 else None

  given, also = [], []
  in_use = NeighborsInUse(own, Source(), {}.get, [given.append, also.append])
  in_use.use(in_use.read(4))
  assert given == [] and in_use.visits == 0  # as they were
  in_use.use(in_use.read(8))
  np.testing.assert_array_equal(given[-1].ids, of(1, 2).ids)
  assert in_use.visits == 640 and also == given
  assert given[-1].retriever == "the run's towers"  # no count, so it stays
  in_use.use(in_use.read(4))  # a rollback
  assert given[-1] is own and in_use.visits == 0


@pytest.mark.long
def test_a_server_takes_both_at_once(small_run, tmp_path, compile_cache):
  """Contexts of the next batch have the promoted checkpoint's neighbours; a damaged file leaves
  parameters and neighbours as they were; a rollback brings the run's back.
  """
  workdir = shutil.copytree(small_run, tmp_path / "run")
  config = dataclasses.replace(config_of(workdir), workdir=str(workdir))
  own = CoVisitNeighbors.load(str(workdir / "features"))
  learner = workdir / "live" / "learner"
  for step in ("8", "12"):
    shutil.copytree(workdir / "checkpoints" / "4", learner / "checkpoints" / step)
  turned = CoVisitNeighbors(np.roll(own.ids, 1, axis=0), np.roll(own.cosine, 1, axis=0))
  promotions = Promotions(str(learner))
  with ServingEngine(str(workdir), config, "promoted") as engine:
    state = engine.living.state
    promotions.promote(8, lambda folder: neighbors.save(folder, turned, 64, []))
    assert engine.reload() and engine.step == 8
    np.testing.assert_array_equal(state._neighbors.part(-1).ids, turned.ids)
    np.testing.assert_array_equal(engine._computer.reasoner._neighbors.ids, turned.ids)
    assert b"gr4ad_neighbor_visits 64" in engine.metrics.text()
    promotions.promote(12, lambda folder: neighbors.save(folder, own, 128, []))
    damaged = learner / "neighbors" / "12" / "neighbors.npz"
    damaged.write_bytes(damaged.read_bytes()[:-5])
    with pytest.raises(Exception, match="neighbors.npz"):
      engine.reload()
    assert engine.step == 8
    np.testing.assert_array_equal(state._neighbors.part(-1).ids, turned.ids)
    promotions.use(None)
    assert engine.reload() and engine.step == 4
    np.testing.assert_array_equal(state._neighbors.part(-1).ids, own.ids)
    assert engine.recommend(Query(user="u1")).checkpoint == 4
