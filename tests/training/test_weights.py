"""A file of weights: what is written is read, and what is of another model is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.checksums import DamagedError
from gr4ad_jax.config import WEIGHTS, ConfigError
from gr4ad_jax.training import weights


def _params(scale: float = 1.0):
  numbers = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
  return {
    "decoder": {"kernel": jnp.asarray(scale * numbers), "bias": jnp.arange(3.0)},
    "table": jnp.full((2, 1), 1e-7),
  }


def _equal(ours, theirs) -> bool:
  return jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), ours, theirs))


def test_float32_comes_back_bit_by_bit_and_float16_rounded(tmp_path):
  params = _params()
  assert weights.save(str(tmp_path / "whole"), params, 7, "float32") == 17
  whole = weights.Weights(str(tmp_path / "whole"))
  assert whole.steps == [7] and _equal(whole.restore_params(params), params)
  weights.save(str(tmp_path / "half"), params, 7, "float16")
  with weights.Weights(str(tmp_path / "half")) as half:
    found = half.restore_params(params, 7)
  rounded = jax.tree.map(lambda a: np.asarray(a).astype(np.float16).astype(np.float32), params)
  assert _equal(found, rounded) and not _equal(found, params)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))
  (tmp_path / "plain").touch()
  assert (tmp_path / "half" / WEIGHTS).stat().st_mode == (tmp_path / "plain").stat().st_mode
  sizes = [(tmp_path / name / WEIGHTS).stat().st_size for name in ("half", "whole")]
  assert sizes[1] - sizes[0] >= 17 * 2 - 8  # two bytes a number; the head is padded to eight


def test_what_half_precision_cannot_hold_is_refused_and_nothing_written(tmp_path):
  with pytest.raises(ConfigError, match="--precision=float16 .* decoder/kernel has numbers beyond"):
    weights.save(str(tmp_path), _params(1e6), 7, "float16")
  assert list(tmp_path.iterdir()) == []


def test_steps_by_name(tmp_path):
  weights.save(str(tmp_path), _params(), 7, "float16")
  found = weights.Weights(str(tmp_path))
  assert [found.resolve(which) for which in ("best", "last", 7)] == [7, 7, 7]
  with pytest.raises(FileNotFoundError, match="holds no step 8; it has 7 alone"):
    found.restore_params(_params(), 8)


@pytest.mark.parametrize(
  ("change", "why"),
  [
    (lambda p: p | {"more": jnp.zeros(2)}, "it lacks more"),
    (lambda p: {"decoder": p["decoder"]}, "it has table"),
    (lambda p: p | {"table": jnp.zeros((1, 2))}, r"its table is \[2, 1\], not \[1, 2\]"),
  ],
)
def test_another_model_is_refused(change, why, tmp_path):
  weights.save(str(tmp_path), _params(), 7, "float16")
  with pytest.raises(ConfigError, match=f"holds another model than the one asked for: {why}"):
    weights.Weights(str(tmp_path)).restore_params(change(_params()))


def test_damage_and_other_files_are_told(tmp_path):
  with pytest.raises(FileNotFoundError):
    weights.Weights(str(tmp_path))
  weights.save(str(tmp_path), _params(), 7, "float16")
  path = tmp_path / WEIGHTS
  path.write_bytes(path.read_bytes()[:-1] + b"x")
  with pytest.raises(DamagedError, match=WEIGHTS):
    weights.Weights(str(tmp_path))
  other = tmp_path / "other"
  other.mkdir()
  (other / WEIGHTS).write_bytes(b"no safetensors")
  with pytest.raises(ConfigError, match="is no file of weights of this library"):
    weights.Weights(str(other))


def test_numbers_that_are_not_finite_are_refused(tmp_path):
  from safetensors.numpy import save_file

  save_file({"a": np.array([1, np.nan], np.float16)}, tmp_path / WEIGHTS, metadata={"step": "7"})
  with pytest.raises(ConfigError, match="not finite"):
    weights.Weights(str(tmp_path)).restore_params({"a": jnp.zeros(2)})
