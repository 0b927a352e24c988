"""Ratios of sums: over micro-batches, over the steps of a metric line, over processes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.config import TrainConfig
from gr4ad_jax.parallel import distributed
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.training import loop, sums
from gr4ad_jax.training import state as state_lib
from gr4ad_jax.training.checkpoint import Checkpointer
from gr4ad_jax.training.step import make_train_step


def _batch(step):
  rng = np.random.default_rng([3, step])
  return {"hit": rng.random(8) < 0.4, "shown": rng.integers(0, 9, 8)}


def _loss(params, batch, key):
  del key
  hits = sums.Ratio((batch["hit"] * batch["shown"]).sum(), batch["shown"].sum())
  nothing = sums.Ratio(jnp.zeros(()), jnp.zeros(()))
  return params["w"] ** 2, {"rate": hits, "nothing": nothing, "scalar": jnp.float32(7)}


def _parts(accumulate=1):
  optimizer = state_lib.make_optimizer(TrainConfig(), 12)
  state = state_lib.init_state(lambda: {"w": jnp.ones(())}, optimizer, mesh_lib.local_mesh())
  return state, make_train_step(_loss, optimizer, 0, accumulate)


def _rate(steps):
  """By a loop over examples."""
  above = below = 0
  for step in steps:
    batch = _batch(step)
    for hit, shown in zip(batch["hit"], batch["shown"], strict=True):
      above += int(hit) * int(shown)
      below += int(shown)
  return above / below


@pytest.mark.parametrize("accumulate", [1, 4])
def test_micro_batches_add_up(accumulate):
  state, step = _parts(accumulate)
  _, metrics = step(state, _batch(5))
  assert metrics["rate"].value == pytest.approx(_rate([5]), rel=1e-6)
  assert float(metrics["rate"].denominator) == _batch(5)["shown"].sum()
  assert float(metrics["scalar"]) == 7


class _Writer:
  def __init__(self):
    self.lines = []

  def write(self, step, scalars):
    self.lines.append((step, scalars))


def _fit(checkpointer, writer, total, **saved):
  state, step = _parts()
  if checkpointer and checkpointer.steps:
    restored = checkpointer.restore(state_lib.abstract(state))
    state, saved = restored.state, {"sums": restored.metadata.get("sums")}
  schedule = loop.Schedule(12, log_every=5, save_every=3, until=total)
  return loop.fit(state, step, _batch, schedule, checkpointer=checkpointer, writer=writer, **saved)


def test_a_line_holds_the_steps_since_the_last_one_also_where_the_run_was_stopped(tmp_path):
  whole, parts = _Writer(), _Writer()
  _fit(None, whole, 12)
  assert [step for step, _ in whole.lines] == [5, 10, 12]
  for (_, line), steps in zip(whole.lines, (range(5), range(5, 10), range(10, 12)), strict=True):
    assert line["train/rate"] == pytest.approx(_rate(steps), rel=1e-12)
    assert line["train/scalar"] == 7 and "train/nothing" not in line
  for until in (3, 6, 9, 12):
    with Checkpointer(str(tmp_path)) as checkpointer:
      _fit(checkpointer, parts, until)
  assert parts.lines == whole.lines


def test_the_sums_go_on_from_call_to_call():
  writer = _Writer()
  result = _fit(None, writer, 3)
  assert not writer.lines and result.sums["rate"][1] == sum(
    _batch(s)["shown"].sum() for s in range(3)
  )


def test_processes_add_up(monkeypatch):
  mine = {"b": sums.Ratio(1, 3), "a": sums.Ratio(np.float32(2.0), jnp.asarray(7.0))}
  assert sums.over_processes(mine) == {"a": 2 / 7, "b": 1 / 3}
  large = 2**53 - 1  # past single precision
  other = np.frombuffer(np.asarray([[4.0, 1.0], [large, 2.0]]).tobytes(), np.uint8)[None]
  monkeypatch.setattr(distributed, "gather", lambda rows: np.concatenate([rows, other]))
  assert sums.over_processes(mine) == {"a": 6 / 8, "b": 2**53 / 5}


def test_a_ratio_of_nothing_is_no_number():
  assert np.isnan(sums.Ratio(0, 0).value)
  merged = sums.Ratio(1, 2).merge(sums.Ratio(3, 4))
  assert (merged.numerator, merged.denominator, merged.value) == (4, 6, 4 / 6)
  assert len(jax.tree.leaves(merged)) == 2
