"""Rematerialisation: memory for time in the backward pass.

The backward pass needs values of the forward pass. They can be kept, or computed again from the
inputs of the part of the model that made them (--remat).
"""

from collections.abc import Callable

import flax.linen as nn
import jax

RECOMPUTED = "rematted_computation"
"""What JAX names the scope of values that are computed again. Whoever computes some again by
itself names them so too, and `training/flops` does not count them as work of the model.
"""

POLICIES = {
  "none": None,
  # Products with weights are 2-D here (`layers.Linear`), those of attention have batch axes. The
  # latter are as large and cheaper to compute, so they are the ones that are made again.
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}
"""Name (--remat) -> what may be kept of a part of the model beside its inputs.

'none' is no policy: all that the backward pass needs is kept.
"""


def rematerialized(part: Callable, policy: str, static_argnums: tuple[int, ...] = ()) -> Callable:
  """A part of a model under a policy; neither its values nor its parameters change.

  Args:
    part: a module class, or a function whose first argument is a module.
    policy: a name of POLICIES.
    static_argnums: which arguments of its call are no arrays, by number. The module itself is 0.
  """
  if policy == "none":
    return part
  return nn.remat(part, policy=POLICIES[policy], static_argnums=static_argnums)


def compiler_options(policy: str) -> dict[str, str]:
  """What XLA must be told for a policy to save memory, as JAX's `compiler_options`.

  A barrier separates what is computed once from what is computed again. On CPU, XLA takes these
  barriers away before it orders the operations, and then keeps both alive. The option leaves that
  pass out. Accelerators need nothing.
  """
  needed = policy != "none" and jax.default_backend() == "cpu"
  return {"xla_disable_hlo_passes": "cse_barrier_expander"} if needed else {}
