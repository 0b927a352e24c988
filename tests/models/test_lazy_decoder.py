"""The late layers on all parts of training at once: what they give one part after the other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.models.context import Context
from gr4ad_jax.models.lazy_decoder import LazyDecoder, one_by_one
from tests.models import tiny

B, M, T, S, D = 2, 3, 3, 5, 16


class OneByOne(LazyDecoder):
  """The decoder without its short cut."""

  together = one_by_one


def inputs():
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
  keys = (draw(B, S + 1, 2, 8), draw(B, S + 1, 2, 8))
  context = Context(keys, keys, jnp.asarray(rng.random((B, S + 1)) < 0.8), draw(B, S, D))
  return draw(B, 1, T + 1, D), draw(B, 1, 1, D), draw(B, M, T, D), context


@pytest.mark.parametrize(
  ("valued", "settings", "remat"),
  [
    (M, {"dropout": 0.4}, "none"),
    (2, {"dropout": 0.4}, "none"),
    pytest.param(2, {"dropout": 0.4}, "full", marks=pytest.mark.long),
    pytest.param(1, {"cross_attention": "fused", "width": 32}, "none", marks=pytest.mark.long),
  ],
)
def test_parts_together_are_the_parts_one_by_one(valued, settings, remat):
  """States, gradients, and the masks of dropout that a key gives."""
  base = {"layers": 3, "lazy_layers": 1, "width": D, "heads": 2, "kv_groups": 2, "kv_layers": 2}
  config = dataclasses.replace(tiny.CONFIG, **(base | settings))
  m, bos, tokens, context = inputs()
  if config.width != D:
    m, bos, tokens = (jnp.tile(x, 2) for x in (m, bos, tokens))
    context = context.replace(**{n: tuple(jnp.tile(x, 2) for x in context.keys)
                                 for n in ("keys", "values")})  # fmt: skip
  params = tiny.draw_params(
    LazyDecoder(config, T + 1), m, bos, tokens, valued, context, train=False, method="together"
  )

  def results(kind):
    def run(params, m, bos, tokens, context):
      return kind(config, T + 1, remat).apply(
        {"params": params}, m, bos, tokens, valued, context, train=True, method="together",
        rngs={"dropout": jax.random.key(7)},
      )  # fmt: skip

    def loss(*arguments):
      first, later, last, free = run(*arguments)
      # Of the later levels the one that both give; each number has a weight of its own.
      states = (first, later[:, :, : T - 1], last, free)
      found = [(x * jnp.cos(jnp.arange(x.size)).reshape(x.shape)).sum() for x in states]
      return sum(found), states

    back = jax.value_and_grad(loss, (0, 1, 2, 3, 4), has_aux=True, allow_int=True)
    return tiny.jit(back)(params, m, bos, tokens, context)

  (_, found), gradients = results(LazyDecoder)
  (_, expected), theirs = results(OneByOne)
  assert expected[2].shape == (B, valued, config.width)
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
  for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(theirs), strict=True):
    if one.dtype == jnp.float32:
      np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
