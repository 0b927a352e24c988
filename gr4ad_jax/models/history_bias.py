"""A signed bias on the ads of the history, in the final, item-level score (method.md §2.4).

A mixture can only add mass to the history. Where people don't take the same ad twice, mass has to go away:
p'(y) = p(y) e^{b·1[y in H]} / Z with Z = 1 - P(H) + e^b P(H), where P(H) is the model's own mass on the history H.
"""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

NAME = "history_bias"  # of the parameter
RATE = 10.0  # b of a parameter of 1


def signed_bias(module: nn.Module) -> jax.Array:
  """The scalar b of a module: `RATE` times its parameter `NAME`, which starts at 0.

  Adam moves a parameter by about the learning rate a step, which suits weights; where people take nothing twice, b has
  to fall to where the history has no mass left in the same steps.
  """
  return RATE * module.param(NAME, nn.with_logical_partitioning(nn.initializers.zeros, ()), ())


def biased_logp(logp_BM: jax.Array, seen_BM: jax.Array, history_logp_BH: jax.Array, history_mask_BH: jax.Array,
                history_size_B: jax.Array, bias: jax.Array) -> jax.Array:  # fmt: skip
  """log p'(y | X), normalised over all UA-SIDs.

  Args:
    logp_BM: log p(y | X) before the bias.
    seen_BM: bool, whether y is in the history.
    history_logp_BH: log p of H sequences of the history, distinct.
    history_mask_BH: which of them are real.
    history_size_B: distinct UA-SIDs of the whole history; with more than H, P(H) is scaled up from the H.
    bias: scalar b.

  Returns:
    [B, M] float32.
  """
  chex.assert_rank([logp_BM, seen_BM, history_logp_BH, history_mask_BH, history_size_B, bias], [2, 2, 2, 2, 1, 0])
  counted_B = history_mask_BH.sum(-1)
  mass_B = (
    jnp.where(history_mask_BH, jnp.exp(history_logp_BH), 0.0).sum(-1) * history_size_B / jnp.maximum(counted_B, 1)
  )
  mass_B = jnp.clip(mass_B, 0.0, 1 - 1e-4)  # an estimate can pass 1, a log of nothing can't be learned from
  return logp_BM + jnp.where(seen_BM, bias, 0.0) - jnp.log1p(jnp.expm1(bias) * mass_B)[:, None]
