"""A toy regression with dropout, as a library for the tests and as a program that they stop and
kill.

Usage: toy.py WORKDIR TOTAL_STEPS SAVE_EVERY SECONDS_A_STEP WIDTH
"""

import functools
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax.config import TrainConfig
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.training import checkpoint, loop, writers
from gr4ad_jax.training.state import init_state, make_optimizer, shardings_of
from gr4ad_jax.training.step import make_train_step

CONFIG = TrainConfig(learning_rate=0.05, warmup_steps=3, seed=5)


class Net(nn.Module):
  width: int = 8

  @nn.compact
  def __call__(self, x_BF, train: bool):
    init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
    h_BD = nn.relu(nn.Dense(self.width, kernel_init=init)(x_BF))
    h_BD = nn.Dropout(0.2, deterministic=not train)(h_BD)
    return nn.Dense(1)(h_BD)[:, 0]


def make_batch(step: int) -> dict[str, np.ndarray]:
  x_BF = np.random.default_rng([7, step]).normal(size=(16, 4)).astype(np.float32)
  return {"x": x_BF, "y": x_BF.sum(axis=1)}


def setup(total_steps: int, width: int = 8, accumulate: int = 1, train: bool = True, mesh=None):
  """State, step and batch maker of the toy; without a mesh, equal ones are compiled once."""
  if mesh:
    state, step = _made(total_steps, width, accumulate, train, mesh)
  else:
    mesh = mesh_lib.local_mesh()
    start, shardings, step = _made_once(total_steps, width, accumulate, train)
    # A copy of its own: the step takes the state that it is given over.
    state = jax.tree.map(lambda x, sharding: jax.device_put(x.copy(), sharding), start, shardings)
  return state, step, lambda number: mesh_lib.put_batch(make_batch(number), mesh)


@functools.cache
def _made_once(*settings):
  state, step = _made(*settings, mesh_lib.local_mesh())
  start = jax.tree.map(lambda x: np.array(x), state)
  return start, jax.tree.map(lambda x: x.sharding, state), step


def _made(total_steps, width, accumulate, train, mesh):
  net = Net(width)

  def loss_fn(params, batch, key):
    predicted = net.apply({"params": params}, batch["x"], train, rngs={"dropout": key})
    error_B = predicted - batch["y"]
    return jnp.mean(jnp.square(error_B)), {"absolute_error": jnp.mean(jnp.abs(error_B))}

  optimizer = make_optimizer(CONFIG, total_steps)
  state = init_state(
    lambda: net.init(jax.random.key(0), jnp.zeros((1, 4)), False)["params"], optimizer, mesh
  )
  step = make_train_step(loss_fn, optimizer, CONFIG.seed, accumulate, shardings_of(state))
  return state, step


def train(
  workdir: str,
  total_steps: int,
  save_every: int,
  seconds: float = 0.0,
  width: int = 8,
  on_progress=None,
):
  """Starts or resumes a run in `workdir`."""
  state, step, batch_at = setup(total_steps, width)
  with checkpoint.Checkpointer(f"{workdir}/checkpoints", best_metric="score") as checkpointer:
    if checkpointer.steps:
      state = checkpointer.restore(state).state
    writer = writers.JsonlWriter(f"{workdir}/metrics.jsonl", int(state.step))

    def slow_batch(number):
      time.sleep(seconds)
      return batch_at(number)

    schedule = loop.Schedule(total_steps, log_every=2, eval_every=8, save_every=save_every)
    result = loop.fit(
      state, step, slow_batch, schedule, checkpointer=checkpointer, writer=writer,
      on_progress=on_progress, evaluate_fn=lambda s: {"score": -abs(int(s.step) - 8)},
    )  # fmt: skip
    writer.close()
  return result


if __name__ == "__main__":
  directory, *numbers = sys.argv[1:]
  done = train(directory, int(numbers[0]), int(numbers[1]), float(numbers[2]), int(numbers[3]),
               on_progress=lambda progress: print(progress.step, flush=True))  # fmt: skip
  print(done.status, flush=True)
