"""A step on the touched rows alone is the step on the whole table; row-wise Adagrad."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.config import Config, ItemConfig, TrainConfig
from gr4ad_jax.requests import row_step
from gr4ad_jax.requests.item_task import make_item_loss
from gr4ad_jax.training import state as state_lib
from gr4ad_jax.training.state import TrainState
from gr4ad_jax.training.step import make_train_step
from gr4ad_jax.zoo import registry
from tests.models import tiny

TRAIN = TrainConfig(table_optimizer="adagrad", warmup_steps=0, clip_norm=0.5)
SHARE = np.arange(1, 1 + tiny.NUM_ADS) / np.arange(1, 1 + tiny.NUM_ADS).sum()


def test_the_touched_rows_make_the_step():
  model = dataclasses.replace(tiny.CONFIG, model="sasrec", layers=1, dropout=0.0, history_bias=True)
  items = ItemConfig(item_loss="sampled", item_negatives=4, inner_targets=True, inner_positions=3)
  module = registry.build(Config(model=model, items=items), tiny.NUM_ADS)
  batch, optimizer = tiny.make_batch(), state_lib.make_optimizer(TRAIN, 100)
  loss_fn, params = make_item_loss(module, SHARE), tiny.draw_params(module, batch, bias=-0.7)
  assert row_step.allowed(TRAIN, loss_fn)
  found = []
  for make in (make_train_step, row_step.make_row_step):
    start = jax.tree.map(jnp.asarray, params)
    # Compiled whole: by itself it would compile an operation at a time.
    state, losses = TrainState(jnp.int32(0), start, jax.jit(optimizer.init)(start)), []
    step = (
      make(loss_fn, optimizer, 0).lower(state, batch).compile({"xla_backend_optimization_level": 0})
    )
    for _ in range(3):
      state, metrics = step(state, batch)
      losses.append((metrics["loss"], metrics["grad_norm"]))
    found.append(jax.device_get((losses, state)))
  jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5), *found)
  still = (found[1][1].params["items"] == params["items"]).all(axis=1)
  assert (
    still[np.setdiff1d(np.arange(tiny.NUM_ADS), read_by(loss_fn, batch))].all() and not still.all()
  )


def read_by(loss_fn, batch):
  """Rows that the first three steps look up."""
  rows = jax.jit(lambda step: loss_fn.touch(batch, row_step.step_key(0, step)).row_U)
  return np.unique([rows(step) for step in range(3)])


@pytest.mark.parametrize("other", [{"table_optimizer": "adamw"}, {"accumulate": 2}])
def test_other_steps_need_the_whole_table(other):
  module = registry.build(
    Config(model=dataclasses.replace(tiny.CONFIG, model="sasrec")), tiny.NUM_ADS
  )
  config = ItemConfig(item_loss="sampled")
  few = make_item_loss(module.clone(items=config), SHARE)
  assert row_step.allowed(TRAIN, few) and not row_step.allowed(
    dataclasses.replace(TRAIN, **other), few
  )
  assert not row_step.allowed(TRAIN, make_item_loss(module, SHARE))


def test_row_adagrad_against_a_loop():
  rng = np.random.default_rng(0)
  params = {
    name: rng.normal(size=(rows, 3)).astype(np.float32) for name, rows in (("items", 5), ("w", 3))
  }
  grads = [
    {name: rng.normal(size=p.shape).astype(np.float32) for name, p in params.items()}
    for _ in range(3)
  ]
  for grad in grads:
    grad["items"][2] = 0  # an ad that no step reads
  config = dataclasses.replace(TRAIN, clip_norm=0.0, weight_decay=0.5, table_learning_rate=0.1)
  optimizer = state_lib.make_optimizer(config, 10)
  state, total_5, expected = optimizer.init(params), np.zeros(5), params["items"].copy()
  update = jax.jit(optimizer.update)
  for step, grad in enumerate(grads):
    updates, state = update(grad, state, params)
    params = jax.tree.map(np.add, params, updates)
    rate = 0.1 * 0.5 * (1 + np.cos(np.pi * step / 10))
    for row in range(5):
      total_5[row] += np.mean(grad["items"][row] ** 2)
      expected[row] -= rate * grad["items"][row] / (np.sqrt(total_5[row]) + 1e-8)
  np.testing.assert_allclose(params["items"], expected, rtol=1e-5)
  plain = state_lib.make_optimizer(dataclasses.replace(config, table_optimizer="adamw"), 10)
  kernel = jax.jit(plain.update)(grads[0], plain.init(params), params)[0]["w"]
  np.testing.assert_allclose(
    update(grads[0], optimizer.init(params), params)[0]["w"], kernel, rtol=1e-6
  )
