"""Arrays land where LOGICAL_RULES says; eight devices are tried in a process of their own."""

import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.parallel import compilation_cache
from gr4ad_jax.parallel import mesh as mesh_lib
from tests import devices

_ON_EIGHT = """
import flax.linen as nn, jax, jax.numpy as jnp, numpy as np, pytest
from jax.sharding import PartitionSpec as P
from gr4ad_jax.config import TrainConfig
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.training import state as state_lib, step as step_lib

mesh = mesh_lib.make_mesh("data:-1,fsdp:2,tensor:2")
assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
batch = mesh_lib.put_batch({"x": np.arange(24.0).reshape(8, 3)}, mesh)
assert batch["x"].sharding.shard_shape((8, 3)) == (2, 3)
assert (np.asarray(batch["x"]) == np.arange(24.0).reshape(8, 3)).all()
with pytest.raises(ValueError, match="6 rows cannot be shared out over 4 devices"):
  mesh_lib.put_batch(np.zeros((6, 2)), mesh)

box = nn.with_logical_partitioning
def init():
  key = jax.random.key(0)
  return {"wide": box(nn.initializers.normal(), ("embed", "mlp"))(key, (3, 6)),
          "table": box(nn.initializers.normal(), ("vocab", "embed"))(key, (12, 4)),
          "odd": box(nn.initializers.normal(), ("vocab", "embed"))(key, (9, 4)), "plain": jnp.ones((4,))}
optimizer = state_lib.make_optimizer(TrainConfig(), 10)
state = state_lib.init_state(init, optimizer, mesh)
spec = jax.tree.map(lambda a: a.sharding.spec, state.params)
table = P(("fsdp", "tensor"), None)
assert spec == {"wide": P(None, "tensor"), "table": table, "odd": P(None, None), "plain": P()}, spec
assert state.params["table"].sharding.shard_shape((12, 4)) == (3, 4)
whole = mesh_lib.local_copy(state.params)
assert all(len(x.sharding.device_set) == 1 for x in jax.tree.leaves(whole))
np.testing.assert_array_equal(whole["table"], state.params["table"])
leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
moments = [leaf for path, leaf in leaves if "wide" in jax.tree_util.keystr(path)]
assert len(moments) == 2 and all(a.sharding.spec == P(None, "tensor") for a in moments)

def loss_fn(params, batch, key):
  return jnp.mean(jnp.square(batch["x"] @ params["wide"])) + jnp.sum(params["odd"] ** 2), {}
before = jax.tree.map(np.asarray, state.params)
results = []
for accumulate in (1, 2):
  fresh = state_lib.init_state(init, optimizer, mesh)
  step = step_lib.make_train_step(loss_fn, optimizer, 0, accumulate, state_lib.shardings_of(fresh))
  after, metrics = step(fresh, batch)
  assert jax.tree.map(lambda a: a.sharding, after) == state_lib.shardings_of(state)
  results.append((float(metrics["loss"]), float(metrics["grad_norm"])))
alone = loss_fn(before, {"x": np.arange(24.0).reshape(8, 3)}, None)[0]
np.testing.assert_allclose([loss for loss, _ in results], float(alone), rtol=1e-5)
np.testing.assert_allclose(results[0], results[1], rtol=1e-5)
print("passed")
"""


def test_eight_devices():
  command = [sys.executable, "-c", _ON_EIGHT]
  done = subprocess.run(
    command, capture_output=True, text=True, check=False, env=devices.environment(8)
  )
  assert done.stdout == "passed\n", done.stderr


@pytest.mark.parametrize(
  ("text", "sizes"),
  [
    ("data:-1", (8, 1, 1)),
    ("data:2,fsdp:-1", (2, 4, 1)),
    ("tensor:2, fsdp:2, data:2", (2, 2, 2)),
    ("fsdp:8", (1, 8, 1)),
  ],
)
def test_sizes_of_the_axes(text, sizes):
  assert tuple(mesh_lib.parse(text, 8).values()) == sizes


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("data:3", "it asks for 3 devices, there are 8"),
    ("data:-1,fsdp:3", "it asks for a multiple of 3 devices, there are 8"),
    ("data:-1,fsdp:-1", "a multiple of 1 devices"),
    ("model:2", "'model:2' is not one of data, fsdp, tensor with a size"),
    ("data", "'data' is not one of"),
    ("data:0", "'data:0' is not one of"),
    ("", "'' is not one of"),
  ],
)
def test_sizes_that_are_refused(text, message):
  with pytest.raises(ValueError, match=message):
    mesh_lib.parse(text, 8)


def test_one_device_holds_everything_and_boxes_are_gone():
  mesh = mesh_lib.local_mesh()
  boxed = jax.eval_shape(
    lambda: {
      "w": nn.with_logical_partitioning(nn.initializers.ones, ("embed", "mlp"))(
        jax.random.key(0), (2, 3)
      )
    }
  )
  shardings = mesh_lib.param_shardings(boxed, mesh)
  assert jax.tree.structure(shardings) == jax.tree.structure({"w": 0})
  assert shardings["w"].shard_shape((2, 3)) == (2, 3)
  assert jnp.array_equal(mesh_lib.put_batch(np.eye(3), mesh), jnp.eye(3))


def test_compilation_cache_keeps_a_program(tmp_path, monkeypatch):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "from_environment"))
  before = jax.config.jax_compilation_cache_dir
  try:
    assert compilation_cache.enable_compilation_cache() == str(tmp_path / "from_environment")
    assert compilation_cache.enable_compilation_cache(str(tmp_path / "given")) == str(
      tmp_path / "given"
    )
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "given")
    assert os.path.isdir(tmp_path / "given")
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
