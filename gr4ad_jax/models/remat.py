"""Rematerialisation: what is kept for the backward pass, and what that pass computes again."""

from collections.abc import Callable

import flax.linen as nn
import jax

POLICIES = {
  "none": None,
  # Weights' products are 2-D here (`layers.Linear`), attention's are batched: the latter are as
  # large and cheaper.
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}
"""--remat -> what may be kept of a part of the model beside its inputs.

none: all of it, whatever the part computes.
"""


def rematerialized(part: Callable, policy: str, static_argnums: tuple[int, ...] = ()) -> Callable:
  """A part of a model under a policy; neither its values nor its parameters change.

  Args:
    part: a module class, or a function whose first argument is a module.
    policy: a name of POLICIES.
    static_argnums: arguments that are no arrays, the module counted as 0.
  """
  if policy == "none":
    return part
  return nn.remat(part, policy=POLICIES[policy], static_argnums=static_argnums)


def compiler_options(policy: str) -> dict[str, str]:
  """What XLA must be told for a policy to save memory.

  On CPU it takes the barriers between what is computed once and what is computed again away before
  it orders the operations, and then keeps both alive. Accelerators need nothing.
  """
  needed = policy != "none" and jax.default_backend() == "cpu"
  return {"xla_disable_hlo_passes": "cse_barrier_expander"} if needed else {}
