"""An optimiser step that touches a few rows of the table of ads, and makes no array of the
table's size.
"""

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from gr4ad_jax.config import TrainConfig
from gr4ad_jax.parallel import row_tables
from gr4ad_jax.requests.item_task import RowLoss
from gr4ad_jax.training.state import Optimizer, TrainState
from gr4ad_jax.training.step import LossFn, Metrics, Step, gathering, make_train_step, step_key


def allowed(config: TrainConfig, loss_fn: LossFn) -> bool:
  """Whether a step on the touched rows is the step on all: the loss reads few, and the optimiser
  moves no other.
  """
  # AdamW moves every row by its decay and momentum, and accumulation reads rows of several steps.
  return (
    isinstance(loss_fn, RowLoss) and config.table_optimizer == "adagrad" and config.accumulate == 1
  )


def make_row_step(
  loss_fn: RowLoss, optimizer: Optimizer, seed: int, state_shardings: Any = None
) -> Step:
  """`make_train_step`, for what is `allowed`; the same numbers, at a cost that does not depend on
  the table's size.

  The rows that the step reads, and what the optimiser holds for them, are copied to every device;
  the step is made on a state that has these rows alone; they are put back, each on the device that
  holds it.

  Args:
    loss_fn: the loss.
    optimizer: one that leaves rows without gradient as they are.
    seed: as `make_train_step` takes it.
    state_shardings: likewise.
  """
  loss_of_rows = loss_fn.of_rows
  if state_shardings is not None:
    params = state_shardings.params
    # Rows that were taken are few, so each device holds them whole.
    whole = NamedSharding(params[row_tables.NAME].mesh, PartitionSpec())
    loss_of_rows = gathering(loss_of_rows, params | {row_tables.NAME: whole})
  step_on_rows = make_train_step(loss_of_rows, optimizer, seed)

  def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
    touched = loss_fn.touch(batch, step_key(seed, state.step))
    some, metrics = step_on_rows(row_tables.take_rows(state, touched.row_U), touched)
    return row_tables.put_rows(state, some, touched.row_U), metrics

  # Donated: the table is updated in place, without a second one beside it.
  return jax.jit(step, donate_argnums=0, out_shardings=(state_shardings, None))
