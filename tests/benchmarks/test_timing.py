"""Counting a function's matrix products, and timing them alone."""

import jax
import jax.numpy as jnp

from gr4ad_jax.benchmarks import timing


def test_products_are_found_with_their_shapes_and_counts():
  def fn(x, w):
    def body(carry, _):
      return jnp.tanh(carry @ w), None

    looped, _ = jax.lax.scan(body, x, None, length=5)
    return jax.jit(lambda a: jnp.einsum("bij,bkj->bik", a, a))(looped.reshape(2, 4, 16)).sum()

  found = timing.matmuls_of(fn, jnp.ones((8, 16)), jnp.ones((16, 16)))
  assert found == {(1, 8, 16, 16, "float32"): 5, (2, 4, 16, 4, "float32"): 1}
  assert timing.flops(found) == 5 * 2 * 8 * 16 * 16 + 2 * 2 * 4 * 16 * 4


def test_the_backward_pass_doubles_the_products_of_a_layer():
  fn = jax.value_and_grad(lambda w, x: jnp.square(x @ w).sum(), argnums=(0, 1))
  found = timing.matmuls_of(fn, jnp.ones((3, 7)), jnp.ones((5, 3)))
  assert sum(found.values()) == 3 and timing.flops(found) == 3 * 2 * 5 * 3 * 7


def test_plain_dots_grow_with_the_number_of_products():
  shape = (1, 256, 256, 256, "float32")
  one, many = (timing.plain_dots({shape: times}, seconds=0.01) for times in (1, 1000))
  assert 0 < one() < many()


def test_interleaving_takes_every_timer_in_turn():
  order = []
  timers = {name: lambda name=name: order.append(name) or 1.0 for name in ("a", "b")}
  seconds = timing.interleaved(timers, 3)
  assert order == ["a", "b"] * 3 and seconds == {"a": [1.0] * 3, "b": [1.0] * 3}
  assert timing.spread([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0}
