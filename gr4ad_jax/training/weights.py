"""Parameters alone, as one file of safetensors: what a published run has in place of checkpoints.

A tensor is named after its place in the tree, such as `decoder/layer_0/kernel`. The file is data
alone: reading it runs no code, as reading a pickle would.
"""

import os
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from gr4ad_jax import checksums, files
from gr4ad_jax.config import WEIGHTS, ConfigError
from gr4ad_jax.training.state import abstract

PRECISIONS = ("float16", "float32")
_STEP = "step"  # of the file's metadata


def save(folder: str, params: Any, step: int, precision: str) -> int:
  """Writes a folder's file of weights, whole or not at all.

  Args:
    folder: where it is to lie.
    params: a tree of float32 arrays.
    step: steps that they were trained for.
    precision: of `PRECISIONS`. float16 keeps 11 significant bits, and numbers up to 65,504.

  Returns:
    How many parameters there are.

  Raises:
    ConfigError: a number that the precision cannot hold.
  """
  from safetensors import numpy as safetensors

  arrays = {}
  # One array at a time: the casted copies are smaller, and the device's are let go.
  for name, leaf in _named(params):
    # A number beyond float16 becomes infinite, and is refused below.
    with np.errstate(over="ignore"):  # looked at next
      arrays[name] = np.ascontiguousarray(np.asarray(jax.device_get(leaf)).astype(precision))
    if not np.isfinite(arrays[name]).all():
      raise ConfigError(f"--precision={precision} is not allowed: {name} has numbers beyond it")
  # Written here, since `save_file` makes files that nobody but their owner may read.
  packed = safetensors.save(arrays, {_STEP: str(step)})
  with files.replacing(os.path.join(folder, WEIGHTS)) as part, open(part, "wb") as file:
    file.write(packed)
  return sum(array.size for array in arrays.values())


class Weights:
  """Reads a file of weights as `Checkpointer` reads checkpoints; there is one step. A context
  manager.

  Args:
    folder: where the file lies.

  Raises:
    FileNotFoundError: there is no such file.
    DamagedError: it is another than was written.
    ConfigError: it is no file of this library's weights.
  """

  def __init__(self, folder: str):
    self._path = os.path.join(folder, WEIGHTS)
    checksums.check(self._path)
    self._step = self._read_step()

  def _read_step(self) -> int:
    from safetensors import SafetensorError, safe_open

    try:
      with safe_open(self._path, "numpy") as file:
        return int(file.metadata()[_STEP])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
      raise ConfigError(f"{self._path} is no file of weights of this library") from error

  @property
  def steps(self) -> list[int]:
    """The one step that there is."""
    return [self._step]

  def resolve(self, which: int | str) -> int:
    """The step, for 'last', 'best' or itself. Raises FileNotFoundError for another."""
    if which not in ("last", "best", self._step):
      raise FileNotFoundError(f"{self._path} holds no step {which!r}; it has {self._step} alone")
    return self._step

  def restore_params(self, target: Any, which: int | str = "best") -> Any:
    """The parameters, in the dtypes and shardings of the target.

    Args:
      target: `state.abstract_params`, or parameters.
      which: as for `resolve`.

    Raises:
      FileNotFoundError: no such step.
      ConfigError: another model's tensors, or numbers that are not finite.
    """
    from safetensors.numpy import load_file

    self.resolve(which)
    found = load_file(self._path)
    wanted = abstract(target)
    shapes = {name: leaf.shape for name, leaf in _named(wanted)}
    # Names in one of the two trees only: symmetric difference.
    for name in sorted(shapes.keys() ^ found.keys()):
      lacks = "lacks" if name in shapes else "has"
      self._refuse(f"it {lacks} {name}")
    for name, array in found.items():
      if array.shape != shapes[name]:
        self._refuse(f"its {name} is {list(array.shape)}, not {list(shapes[name])}")
      if not np.isfinite(array).all():
        raise ConfigError(f"{self._path} holds numbers that are not finite")
    # In the order of the tree, which is not that of the file.
    placed = [
      jax.device_put(found[name].astype(leaf.dtype), leaf.sharding) for name, leaf in _named(wanted)
    ]
    return jax.tree.unflatten(jax.tree.structure(wanted), placed)

  def _refuse(self, why: str) -> None:
    raise ConfigError(f"{self._path} holds another model than the one asked for: {why}")

  def close(self) -> None:
    """Nothing is held open."""

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def _named(tree: Any) -> Iterable[tuple[str, Any]]:
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf
