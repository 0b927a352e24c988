"""Tables cut by rows: size, start, best rows; and, on eight devices in a process of their own, whole training steps."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.parallel import tables

_ON_EIGHT = """
import dataclasses, re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P
from gr4ad_jax.benchmarks import table as suite
from gr4ad_jax.config import Config, ItemConfig, ModelConfig, TrainConfig
from gr4ad_jax.decoding.item_ranker import ItemRanker
from gr4ad_jax.models.gr4ad import next_code_logp
from gr4ad_jax.parallel import mesh as mesh_lib, tables

ADS = tables.SMALL + 5  # 66,560 rows, the last 1,019 of no ad
FAST = {"xla_backend_optimization_level": 0}

def made(mesh, loss, rule):
  model = ModelConfig(model="sasrec", layers=1, width=8, heads=2, dropout=0.0, history_bias=True)
  config = Config(model=model, items=ItemConfig(item_loss=loss, item_negatives=100),
                  training=TrainConfig(mesh=mesh, table_optimizer=rule, warmup_steps=0))
  return suite.make_run(config, ADS, slots=4, rows=8)

def whole_arrays(text):
  rows = tables.rows(ADS)
  results = [line.split(" = ", 1)[1].split("(", 1)[0] for line in text.splitlines() if " = " in line]
  return [line for line in results if re.search(rf"\\\\b({ADS}|{rows})\\\\b", line)]

alone = jax.devices()[:1]
for loss, rule in (("sampled", "adagrad"), ("sampled", "adamw"), ("softmax", "adagrad")):
  found = {}
  for mesh in ("", "fsdp:8", "data:2,fsdp:2,tensor:2"):
    run = made(mesh or "data:1", loss, rule) if mesh else suite.on(alone, lambda: made("data:1", loss, rule))
    shards = run.mesh.shape["fsdp"] * run.mesh.shape["tensor"]
    step = run.step.lower(run.state, run.batch).compile(compiler_options=FAST)
    if mesh:
      assert not whole_arrays(step.as_text()), (mesh, loss, rule, whole_arrays(step.as_text())[:3])
      table = run.state.params["items"]
      assert table.sharding.shard_shape(table.shape) == (tables.rows(ADS) // shards, 8)
"""
