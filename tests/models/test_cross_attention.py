"""The fused cross-attention, interpreted, against `layers.attend`; lowered for accelerators."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from gr4ad_jax.knobs import ConfigError
from gr4ad_jax.models import attention_kernels
from gr4ad_jax.models.cross_attention import cross_attend, fused_attend, is_fused
from gr4ad_jax.models.layers import attend
from gr4ad_jax.training import flops
from tests.models import tiny


def inputs(rng, requests, queries, heads, groups, slots, width, dtype=np.float32):
  """Queries, the context, which of its slots are seen (the first always), and a cotangent."""
  q = jnp.asarray(rng.normal(size=(requests, queries, heads, width)), dtype)
  kv = jnp.asarray(rng.normal(size=(requests, slots, groups, width)), dtype)
  mask = rng.random((requests, slots)) < 0.7
  mask[:, 0] = True
  cotangent = jnp.asarray(rng.normal(size=(requests, queries, heads * width)), dtype)
  return q, kv, jnp.asarray(mask), cotangent


@tiny.jit
def both(q, kv, mask, cotangent):
  """(read, dq, dkv) of the kernel and of the reference."""

  def of(run):
    read, back = jax.vjp(run, q, kv)
    return read, *back(cotangent)

  fused = of(lambda q, kv: fused_attend(q, kv, mask)[0])
  return fused, of(lambda q, kv: attend(q, kv, kv, mask[:, None]))


def drawn(seed):
  """Sizes at random: one group and many, slots that fill a block and that do not."""
  rng = np.random.default_rng(seed)
  groups = int(rng.integers(1, 4))
  heads = groups * int(rng.integers(1, 4))
  slots = int(rng.choice([1, 3, 15, 16, 17, 31, 32, 40]))
  width = int(rng.choice([16, 32]))
  queries = int(rng.integers(1, 6))
  # Of every fourth so many that a program takes some of the queries, and slots in pieces.
  if seed % 4 == 3:
    queries = int(rng.choice([129, 200, 256]))
    slots = int(rng.choice([64, 100, 129, 200]))
  return inputs(rng, int(rng.integers(1, 4)), queries, heads, groups, slots, width)


@pytest.mark.parametrize(
  "seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(4, 200))]
)
def test_the_kernel_is_attention_and_its_gradients(seed):
  fused, plain = both(*drawn(seed))
  for found, expected in zip(fused, plain, strict=True):
    assert found.shape == expected.shape and found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_request_that_sees_nothing_reads_the_mean():
  q, kv, mask, _ = inputs(np.random.default_rng(0), 2, 3, 2, 1, 5, 16)
  read, _ = fused_attend(q, kv, mask & jnp.asarray([[True], [False]]))
  mean = np.asarray(kv)[1, :, 0].mean(0)
  np.testing.assert_allclose(
    read[1].reshape(3, 2, 16), np.broadcast_to(mean, (3, 2, 16)), atol=1e-5
  )


def test_in_bfloat16_it_is_as_near_to_float32_as_the_reference_is():
  rng = np.random.default_rng(1)
  exact, _ = both(*inputs(rng, 2, 4, 2, 2, 33, 16))
  narrow = [jnp.asarray(x, jnp.bfloat16) if x.dtype == jnp.float32 else x
            for x in inputs(np.random.default_rng(1), 2, 4, 2, 2, 33, 16)]  # fmt: skip
  fused, plain = both(*narrow)
  for ours, theirs, true in zip(fused, plain, exact, strict=True):
    assert ours.dtype == jnp.bfloat16
    off, usual = (np.abs(np.asarray(x, np.float32) - true).mean() for x in (ours, theirs))
    assert 0 < off < 1.1 * usual


def test_which_widths_the_kernel_takes():
  assert is_fused("fused", 64)
  assert not is_fused("plain", 64)
  assert not is_fused("auto", 64)  # on a CPU
  assert not is_fused("fused", 48)  # no power of two
  assert not is_fused("fused", 8)  # a product of Triton's takes 16


def test_no_scores_of_many_queries_are_held():
  """512 beams on 513 slots: forward, nothing is as large as the scores of one head."""
  q, kv, mask, _ = inputs(np.random.default_rng(5), 1, 512, 2, 2, 513, 16)
  jaxpr = jax.make_jaxpr(lambda q, kv: fused_attend(q, kv, mask)[0])(q, kv).jaxpr
  made = [out.aval.size for eqn, _ in flops.equations(jaxpr, into_kernels=False)
          for out in eqn.outvars]  # fmt: skip
  assert max(made) == kv.size < 512 * 513


def test_a_piece_of_hidden_slots_is_not_read():
  """Also the first piece: what was summed of hidden slots falls to 0 at the first real one."""
  q, kv, _, _ = inputs(np.random.default_rng(6), 1, 300, 1, 1, 200, 16)
  seen = jnp.arange(200)[None] == 150
  found, _ = fused_attend(q, kv, seen)
  np.testing.assert_allclose(found[0], np.broadcast_to(kv[0, 150], (300, 16)), atol=1e-6)


def test_several_accelerators_have_no_kernel(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  assert is_fused("auto", 64) and not is_fused("auto", 48)
  monkeypatch.setattr(jax, "device_count", lambda: 4)
  assert not is_fused("auto", 64)
  with pytest.raises(ConfigError, match="--cross_attention=fused is not allowed: .* there are 4"):
    is_fused("fused", 64)


def test_values_of_their_own_are_not_taken_for_keys():
  rng = np.random.default_rng(2)
  q, k, mask, _ = inputs(rng, 1, 2, 1, 1, 4, 16)
  v = k + 1
  found, keys = cross_attend("fused", q, k, v, mask, shared=False)
  assert keys is None
  np.testing.assert_array_equal(found, attend(q, k, v, mask[:, None]))


def test_layers_hand_one_gradient_of_the_context_on():
  """Of three layers that read it in turn: it is that of the sum, and no pass sums arrays of it."""
  q, kv, mask, cotangent = inputs(np.random.default_rng(4), 2, 3, 2, 2, 5, 16)

  def loss(read):
    return lambda q, kv: (layers(read, q, kv) * cotangent.reshape(q.shape)).sum()

  def layers(read, q, kv):
    for scale in (1.0, 0.5, -2.0):
      found, kv = read(scale * q, kv)
      q = q + found.reshape(q.shape)
    return q

  fused = jax.grad(loss(lambda q, kv: fused_attend(q, kv, mask)), (0, 1))
  plain = jax.grad(loss(lambda q, kv: (attend(q, kv, kv, mask[:, None]), kv)), (0, 1))
  for found, expected in zip(tiny.jit(fused)(q, kv), tiny.jit(plain)(q, kv), strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

  def sums(run):
    made = flops.equations(jax.make_jaxpr(run)(q, kv).jaxpr, into_kernels=False)
    return [
      eqn for eqn, _ in made
      if eqn.primitive.name in ("add", "add_any") and eqn.outvars[0].aval.size == kv.size
      and eqn.outvars[0].aval.shape != q.shape
    ]  # fmt: skip

  assert len(sums(plain)) >= 5 and sums(fused) == []


def test_a_kernels_work_is_that_of_the_products():
  """As utilisation counts it: what is computed again is left out, and so are filled-up blocks."""
  q, kv, mask, cotangent = inputs(np.random.default_rng(3), 2, 3, 4, 2, 5, 16)

  def work(run):
    back = lambda q, kv: jax.vjp(run, q, kv)[1](cotangent)  # noqa: E731
    return flops.matmul_flops(flops.matmuls_in(jax.make_jaxpr(back)(q, kv).jaxpr, recomputed=False))

  fused = work(lambda q, kv: fused_attend(q, kv, mask)[0])
  plain = work(lambda q, kv: attend(q, kv, kv, mask[:, None]))
  assert fused == plain == 6 * 2 * 2 * 4 * 3 * 5 * 16  # six products, B, H, Q, S, d


@pytest.mark.long
def test_a_model_with_the_kernel_is_the_model():
  batch = tiny.make_batch()
  codes = batch.target_codes_BMT
  params = tiny.make_params(tiny.make_model(width=64))

  def loss(how):
    model = tiny.make_model(width=64, cross_attention=how)
    run = lambda params: model.apply({"params": params}, batch, codes).logp_BM.mean()  # noqa: E731
    return tiny.jit(jax.value_and_grad(run))(params)

  found, gradient = loss("fused")
  expected, usual = loss("plain")
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(usual), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def device_of(platform):
  """Says for which GPU a kernel is lowered: since JAX 0.11 one must be there, or be named."""
  if platform != "cuda":
    return contextlib.nullcontext()
  device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
  return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


# Heads of 64 in two, thirteen and one groups, and of 128: what a TPU's program takes differs.
@pytest.mark.parametrize(
  ("groups", "width"),
  [(13, 64), (6, 128), *(pytest.param(n, 64, marks=pytest.mark.long) for n in (1, 2))],
)
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_it_lowers_for_accelerators(platform, groups, width):
  q, kv, mask, _ = inputs(np.random.default_rng(0), 2, 4, groups, groups, 225, width, jnp.bfloat16)

  def loss(q, kv):
    return fused_attend(q, kv, mask)[0].astype(jnp.float32).sum()

  name = {"cuda": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}[platform]
  # Triton's form is not promised to last, so that such a module cannot be kept in a file.
  lasting = [export.DisabledSafetyCheck.custom_call(name)]
  gradient = jax.jit(jax.grad(loss, (0, 1)))
  with device_of(platform):
    module = export.export(gradient, platforms=[platform], disabled_checks=lasting)(q, kv)
  text = module.mlir_module()
  assert text.count(f"@{name}(") == 1  # the mean itself is not asked for
  assert "stablehlo.dot_general" not in text  # all products are in the kernel


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_many_queries_lower_for_accelerators(platform):
  """The beams of a search: 512 queries on 513 slots."""
  q, kv, mask, _ = inputs(np.random.default_rng(0), 2, 512, 6, 6, 513, 128, jnp.bfloat16)
  name = {"cuda": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}[platform]
  lasting = [export.DisabledSafetyCheck.custom_call(name)]
  read = jax.jit(lambda q, kv: fused_attend(q, kv, mask)[0])
  with device_of(platform):
    module = export.export(read, platforms=[platform], disabled_checks=lasting)(q, kv)
  text = module.mlir_module()
  assert text.count(f"@{name}(") == 1 and "stablehlo.dot_general" not in text


@pytest.mark.long
@pytest.mark.parametrize("slice_", ["v5e:2x2", "v6e:2x2"])
@pytest.mark.parametrize(
  ("groups", "width", "queries", "slots", "kernels"),
  # Of many queries the backward pass is products.
  [(13, 64, 4, 225, 2), (6, 128, 53, 225, 2), (6, 128, 512, 513, 1), (13, 64, 130, 513, 1)],
)
def test_it_compiles_for_a_tpu(slice_, groups, width, queries, slots, kernels, monkeypatch):
  """By libtpu, of the extra `roofline`, for a TPU that is not here: Mosaic takes the kernels."""
  pytest.importorskip("libtpu")
  monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
  topology = topologies.get_topology_desc(platform="tpu", topology_name=slice_)
  place = SingleDeviceSharding(topology.devices[0])
  rng = np.random.default_rng(0)
  arrays = inputs(rng, 2, queries, groups, groups, slots, width, jnp.bfloat16)
  shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for x in arrays]

  def run(q, kv, mask, cotangent):
    read, back = jax.vjp(lambda q, kv: fused_attend(q, kv, mask)[0], q, kv)
    return read, *back(cotangent)

  program = jax.jit(run).lower(*shapes).compile()
  assert program.as_text().count('custom_call_target="tpu_custom_call"') == kernels


@pytest.mark.parametrize(
  "groups, width, expected",
  [(8, 64, 2), (8, 32, 4), (4, 128, 1), (3, 64, 3), (6, 64, 2), (9, 32, 9), (1, 64, 1)],
)
def test_a_program_takes_the_fewest_groups_that_fill_the_lanes(groups, width, expected):
  assert attention_kernels._groups_a_program(groups, width) == expected
