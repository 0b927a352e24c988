"""Modules with drawn parameters, so that no bias is 0 and no scale is 1."""

import functools

import flax.linen as nn
import jax
import numpy as np


def drawn(module, *inputs, seed=0, spread=0.4, **kwargs):
  """Parameters of the module on these inputs: normal draws, NumPy arrays; nothing is compiled."""
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(seed), *inputs, **kwargs))
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: (spread * rng.normal(size=x.shape)).astype(np.float32),
    nn.meta.unbox(shapes["params"]),
  )


def applied(module, params, *inputs, **kwargs):
  """What the module makes of its inputs, in one program, which the same module's calls share."""
  settings = tuple(x if isinstance(x, (int, bool)) else None for x in inputs)
  traced = [x for x, setting in zip(inputs, settings, strict=True) if setting is None]
  switches = {name: x for name, x in kwargs.items() if isinstance(x, bool)}
  arrays = {name: x for name, x in kwargs.items() if name not in switches}
  program = _program(module, settings, tuple(sorted(switches.items())))
  return program(params, traced, arrays)


@functools.cache
def _program(module, settings, switches):
  @jax.jit
  def run(params, traced, arrays):
    left = iter(traced)
    inputs = [next(left) if setting is None else setting for setting in settings]
    return module.apply({"params": params}, *inputs, **dict(switches), **arrays)

  return run


def arrays(seed, *shapes):
  """Standard normal float32 arrays."""
  rng = np.random.default_rng(seed)
  made = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
  return made if len(made) > 1 else made[0]


def assert_close(ours, theirs, tolerance=1e-5):
  """Equal to a tolerance relative to the largest value."""
  scale = max(1.0, float(np.abs(theirs).max()))
  np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=tolerance * scale)
