"""Counting matrix products; in which dtype a train step runs them; the peaks of devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.config import Config, ItemConfig, ObjectiveConfig, SidConfig, TrainConfig
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.requests.item_task import make_item_loss
from gr4ad_jax.requests.vsl_task import make_vsl_loss
from gr4ad_jax.training import flops
from gr4ad_jax.zoo import registry
from gr4ad_jax.zoo.items import ItemModel
from tests.models import tiny


def test_products_are_found_with_their_shapes_and_counts():
  def fn(x, w):
    def body(carry, _):
      return jnp.tanh(carry @ w), None

    looped, _ = jax.lax.scan(body, x, None, length=5)
    return jax.jit(lambda a: jnp.einsum("bij,bkj->bik", a, a))(looped.reshape(2, 4, 16)).sum()

  found = flops.matmuls_of(fn, jnp.ones((8, 16)), jnp.ones((16, 16)))
  assert found == {(1, 8, 16, 16, "float32"): 5, (2, 4, 16, 4, "float32"): 1}
  assert flops.matmul_flops(found) == 5 * 2 * 8 * 16 * 16 + 2 * 2 * 4 * 16 * 4


def test_the_backward_pass_doubles_the_products_of_a_layer():
  fn = jax.value_and_grad(lambda w, x: jnp.square(x @ w).sum(), argnums=(0, 1))
  found = flops.matmuls_of(fn, jnp.ones((3, 7)), jnp.ones((5, 3)))
  assert sum(found.values()) == 3 and flops.matmul_flops(found) == 3 * 2 * 5 * 3 * 7


def test_a_mixed_product_counts_as_the_wider_dtype():
  x, y = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 4), jnp.float32)
  dot = lambda x, y: jax.lax.dot_general(x, y, (((1,), (0,)), ((), ())))  # noqa: E731
  assert flops.matmuls_of(dot, x, y) == {(1, 2, 3, 4, "float32"): 1}


@pytest.mark.parametrize(
  ("kind", "peak"),
  [
    ("NVIDIA H200", 989e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA L4", 121e12),
    ("NVIDIA L40S", 362e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("TPU v5 lite", 197e12),
    ("TPU v5", 459e12),
    ("TPU v4", 275e12), ("TPU v6 lite", 918e12), ("cpu", None), ("NVIDIA L400", None),
  ],
)  # fmt: skip
def test_peaks_by_name(kind, peak):
  assert flops.peak_of(kind) == peak


def gradient(name, items=None, **settings):
  """(function of parameters and a batch that gives loss and gradient, its arguments) of a model
  of the zoo.
  """
  policy = settings.pop("remat", "none")
  config = Config(
    sid=SidConfig(codebooks=tiny.CODEBOOKS),
    model=dataclasses.replace(tiny.CONFIG, model=name, **settings), items=items or ItemConfig(),
    training=TrainConfig(remat=policy),
  )  # fmt: skip
  model, batch = registry.build(config, tiny.NUM_ADS), tiny.make_batch()
  if isinstance(model, ItemModel):
    loss, arguments = make_item_loss(model, np.full(tiny.NUM_ADS, 1 / tiny.NUM_ADS)), (batch,)
  else:
    bins = config.model.ecpm_bins
    ecpm = EcpmBins(np.arange(1, bins, dtype=np.float32), np.ones(bins, np.float32), 100.0)
    loss, arguments = make_vsl_loss(model, ObjectiveConfig(), ecpm), (batch, batch.target_codes_BMT)
  params = tiny.draw_params(model, *arguments)
  return jax.value_and_grad(loss, has_aux=True), (params, batch, jax.random.key(0))


def _equations(jaxpr):
  for eqn in jaxpr.eqns:
    yield eqn
    for value in eqn.params.values():
      for sub in value if isinstance(value, (tuple, list)) else (value,):
        sub = getattr(sub, "jaxpr", sub)
        if hasattr(sub, "eqns"):
          yield from _equations(sub)


@pytest.mark.parametrize(
  "name",
  ["gr4ad", "tiger", "sasrec", "hstu", "two_tower"]
  + [pytest.param("gr4ad_items", marks=pytest.mark.long)],
)
def test_products_are_in_bfloat16_and_losses_in_float32(name):
  items = ItemConfig(item_loss="sampled" if name == "sasrec" else "softmax")
  layers = {"layers": 2, "lazy_layers": 1} if name in ("gr4ad", "gr4ad_items") else {"layers": 1}
  settings = {"compute_dtype": "bfloat16", "history_bias": name == "gr4ad"} | layers
  fn, arguments = gradient(name, items, **settings)
  jaxpr = jax.make_jaxpr(fn)(*arguments).jaxpr
  tables = {
    (size, tiny.CONFIG.width) for size in tiny.CODEBOOKS[:2]
  }  # the third is as long as the batch
  B, M, S = 4, tiny.DATA.targets + 16, 11
  copied = (
    2 * B * M * S
  )  # the copy path's attention over matches; targets, and ads of the history for the bias
  for one, times in flops.matmuls_in(jaxpr).items():
    assert one[-1] == "bfloat16" or flops.matmul_flops({one: 1}) <= copied, (one, times)
  for eqn in _equations(jaxpr):
    if eqn.primitive.name in ("exp", "exp2", "log", "log1p", "expm1"):
      assert eqn.invars[0].aval.dtype == jnp.float32, eqn
    if (
      eqn.primitive.name == "convert_element_type"
    ):  # rows of codes are gathered first: no table is converted whole
      assert eqn.outvars[0].aval.shape not in tables, eqn
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(jax.eval_shape(fn, *arguments))} == {
    "float32"
  }


@pytest.mark.parametrize("name", [pytest.param("gr4ad", marks=pytest.mark.long), "hstu"])
def test_what_is_computed_again_is_no_work_of_the_model(name):
  counts = {}
  for policy in ("none", "dots", "full"):
    fn, arguments = gradient(name, remat=policy, layers=1, lazy_layers=0)
    jaxpr = jax.make_jaxpr(fn)(*arguments).jaxpr
    counts[policy] = [
      flops.matmul_flops(flops.matmuls_in(jaxpr, recomputed)) for recomputed in (False, True)
    ]
  assert counts["none"][0] == counts["none"][1] == counts["dots"][0] == counts["full"][0]
  assert counts["none"][0] < counts["dots"][1] < counts["full"][1]
