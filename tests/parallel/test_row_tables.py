"""Tables cut by rows: their size and start; and, on eight devices in a process of their own,
whole training steps.
"""

import subprocess
import sys

import jax
import numpy as np
import pytest

from gr4ad_jax.parallel import row_tables
from tests import devices

_ON_EIGHT = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from gr4ad_jax.benchmarks import table as suite
from gr4ad_jax.config import Config, DataConfig, ItemConfig, ModelConfig, TrainConfig
from gr4ad_jax.decoding.item_ranker import ItemRanker
from gr4ad_jax.models.level_heads import code_logp
from gr4ad_jax.models.outputs import next_code_logp
from gr4ad_jax.parallel import mesh as mesh_lib, row_tables
from gr4ad_jax.training import state as state_lib
from gr4ad_jax.training.checkpoint import Checkpointer

ADS = row_tables.SMALL + 5
ROWS = row_tables.rows(ADS)  # the last 1,019 are no ad
MESHES = {"fsdp:8": 8, "data:2,fsdp:2,tensor:2": 4}  # parts of a table
TOP = jax.lax.top_k

def run_of(mesh, loss, rule):
  config = Config(data=DataConfig(history_slots=4),
                  model=ModelConfig(model="sasrec", layers=0, width=8, heads=2, dropout=0.0, history_bias=True),
                  items=ItemConfig(item_loss=loss, item_negatives=100, item_smoothing=0.1),
                  training=TrainConfig(batch_size=8, table_optimizer=rule, warmup_steps=0))
  return suite.make_run(config, ADS, mesh)

def trained(run, shards):
  state, batches = run.init(), [run.make_batch(number) for number in range(3)]
  program = run.step.lower(state, batches[0]).compile()
  assert bool(suite.whole_arrays(program, (ADS, ROWS))) == (shards == 1), suite.whole_arrays(program, (ADS, ROWS))
  cut = [x for x in jax.tree.leaves(state) if ROWS in x.shape]
  assert len(cut) >= 2 and all(x.sharding.shard_shape(x.shape)[0] == ROWS // shards for x in cut)
  start, losses = np.asarray(state.params["items"]), []
  for batch in batches:
    state, metrics = program(state, batch)
    losses.append(float(metrics["loss"]))
  assert state.params["items"].sharding.shard_shape((ROWS, 8)) == (ROWS // shards, 8)
  read = np.unique([x for b in batches for ads in (b.slot_ad_BS, b.target_ad_BM) for x in np.ravel(ads)])
  return state, losses, np.asarray(state.params["items"]) - start, read

alone = mesh_lib.make_mesh("data:1", jax.devices()[:1])
for loss, rule in (("softmax", "adamw"), ("sampled", "adagrad")):
  _, losses, moved, read = trained(run_of(alone, loss, rule), 1)
  if rule == "adagrad":  # no row moves but those that are read
    rows = np.nonzero(moved.any(1))[0]
    assert np.isin(read, rows).all() and len(rows) <= len(read) + 3 * 100 and rows.max() < ADS
  for text, shards in list(MESHES.items())[loss == "softmax" :]:
    mesh = mesh_lib.make_mesh(text)
    run = run_of(mesh, loss, rule)
    state, found, change, _ = trained(run, shards)
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    np.testing.assert_allclose(change, moved, atol=2e-5)

# The suite: gradients of the whole table stay on their shards too.
data = DataConfig(history_slots=4)
figures = suite.measure(Config(data=data, training=TrainConfig(batch_size=8), items=ItemConfig(item_negatives=50)), ADS)
assert [way["whole_arrays"] for way in figures["ways"].values()] == [[], [], []]
adamw, adagrad, rows = (way["most"] / (4 * ROWS * 32 / 8) for way in figures["ways"].values())  # tables' parts
assert adamw > 4 > adagrad > 2 > rows > 1, figures["ways"]
assert figures["table"] == {"shape": (ROWS, 32), "part": (ROWS // 8, 32), "parts": 8, "bytes": 128 * ROWS}
assert figures["accumulator"]["part"] == (ROWS // 8,)
assert 0.9 * figures["rows_read_at_most"] < figures["rows_moved"] <= figures["rows_read_at_most"]
assert "8 parts of (8320, 32), 0.01 GB together" in suite.summary(figures), suite.summary(figures)

# The best ads, by the shards' best.
ranker, batch = ItemRanker(run.model), jax.device_get(run.make_batch(7))
logp_BK, ad_BK = ranker.search(state.params, batch, 20)
assert ad_BK.is_fully_replicated
expected = ranker.search(mesh_lib.local_copy(state.params), batch, 20)
np.testing.assert_allclose(logp_BK, expected[0], atol=1e-5)
np.testing.assert_array_equal(ad_BK, expected[1])
program = ranker._best.lower(state.params, batch, k=20, mesh=mesh).compile()
assert not suite.whole_arrays(program, (ADS, ROWS))
ties_BN = np.random.default_rng(0).integers(0, 5, (6, 64)).astype(np.float32)
for k in (3, 40):
  placed_BN = jax.device_put(ties_BN, NamedSharding(mesh, P(None, row_tables.AXES)))
  cut = jax.jit(lambda x: row_tables.top_k(x, k, mesh))(placed_BN)
  np.testing.assert_array_equal(cut[0], TOP(ties_BN, k)[0])
  np.testing.assert_array_equal(cut[1], TOP(ties_BN, k)[1])

# A head's columns, and their gradient, stay on their shards.
spec = NamedSharding(mesh, P(None, row_tables.AXES)), mesh_lib.batch_sharding(mesh)
shapes = [jax.ShapeDtypeStruct((16, 4096), np.float32, sharding=spec[0])]
shapes += [jax.ShapeDtypeStruct(shape, kind, sharding=spec[1]) for shape, kind in (((8, 2, 16), "f4"), ((8, 2), "i4"))]
total = lambda kernel, h_BMD, code_BM: next_code_logp(h_BMD @ kernel, code_BM).sum()
program = jax.jit(jax.grad(total, (0, 1)), out_shardings=spec).lower(*shapes).compile()
assert not suite.whole_arrays(program, (4096,))
pieces = lambda kernel, h_RD, code_RC: code_logp(512, h_RD, kernel, jnp.zeros(4096), code_RC).sum()
shapes[1:] = [jax.ShapeDtypeStruct(shape, kind, sharding=spec[1]) for shape, kind in (((16, 16), "f4"), ((16, 1), "i4"))]
program = jax.jit(jax.grad(pieces, (0, 1)), out_shardings=spec).lower(*shapes).compile()
assert not suite.whole_arrays(program, (4096, 512))

# A checkpoint goes back in parts, onto another mesh too.
with Checkpointer(sys.argv[1]) as checkpointer:
  checkpointer.save(state, data={})
  checkpointer.wait()
  other = run_of(mesh_lib.make_mesh("fsdp:8"), loss, rule)
  back = checkpointer.restore(other.abstract).state
assert state_lib.shardings_of(back) == state_lib.shardings_of(other.abstract)
for one, two in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
  np.testing.assert_array_equal(one, two)
print("passed")
"""


@pytest.mark.long
def test_eight_devices(tmp_path):
  command = [sys.executable, "-c", _ON_EIGHT, str(tmp_path / "checkpoints")]
  done = subprocess.run(
    command, capture_output=True, text=True, check=False, env=devices.environment(8)
  )
  assert done.stdout == "passed\n", done.stderr


def test_large_tables_are_padded_to_what_meshes_divide():
  assert [row_tables.rows(ads) for ads in (1, 4001, row_tables.SMALL - 1)] == [
    1,
    4001,
    row_tables.SMALL - 1,
  ]
  for ads in (row_tables.SMALL, row_tables.SMALL + 1, 50_000_000):
    assert (
      0 <= row_tables.rows(ads) - ads < row_tables.MULTIPLE
      and row_tables.rows(ads) % row_tables.MULTIPLE == 0
    )


def test_a_large_table_starts_normal_and_without_repeats(monkeypatch):
  monkeypatch.setattr(row_tables, "SMALL", 4096)
  monkeypatch.setattr(row_tables, "_CHUNK", 4)
  table = np.asarray(
    jax.jit(lambda: row_tables.normal(0.5)(jax.random.key(0), (6 * 1024, 8)))()
  )  # 6 rows: 4, then 2
  np.testing.assert_allclose([table.mean(), table.std()], [0, 0.5], atol=0.01)
  assert len(np.unique(table)) > 0.99 * table.size
  np.testing.assert_allclose(np.quantile(table, [0.025, 0.975]), [-0.98, 0.98], atol=0.02)
