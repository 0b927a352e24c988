"""A run of which one bit is wrong: every reader refuses the file by its name, or reads the same
numbers.
"""

import random
import shutil

import jax
import numpy as np
import pytest

from gr4ad_jax import files
from gr4ad_jax.builders.prepare import load_dataset
from gr4ad_jax.config import load_config
from gr4ad_jax.evaluation.calibration import Calibration
from gr4ad_jax.features.neighbors import NeighborFolds
from gr4ad_jax.features.trends import Trends
from gr4ad_jax.parallel import mesh as mesh_lib
from gr4ad_jax.requests import inputs as inputs_lib
from gr4ad_jax.requests import request_task
from gr4ad_jax.requests.candidates import Candidates
from gr4ad_jax.runs import run
from gr4ad_jax.training import state as state_lib
from gr4ad_jax.training.checkpoint import Checkpointer
from gr4ad_jax.value import reward_run
from gr4ad_jax.zoo import registry

pytestmark = pytest.mark.usefixtures("compile_cache")
_NOT_READ = ("metrics.jsonl", "tensorboard", "lock")  # by nobody who answers or trains


@pytest.fixture
def workdir(runs, tmp_path):
  """A run with two checkpoints, and in it files of a reward model and of candidates."""
  workdir = shutil.copytree(runs / "second", tmp_path / "run")
  edges = np.arange(6, dtype=np.float32).reshape(2, 3)
  (workdir / "reward").mkdir()
  reward_run.Scale(edges, edges + 1, 2.5, 9.0, "codes").save(str(workdir / "reward"))
  calibration = vars(Calibration([0.0, 1.0], [0.5, 2.0], 1.5))
  files.write_json(str(workdir / "reward" / "calibration.json"), calibration)
  columns = [np.arange(8, dtype=np.float32).reshape(2, 4) + n for n in range(6)]
  Candidates(*columns).save(str(workdir / "candidates" / "round_00000004.npz"))
  return workdir


@pytest.fixture(scope="module")
def target(runs):
  """Shapes of the run's training state."""
  config = load_config(str(runs / "second"))
  model = registry.build(config, 24)
  optimizer = state_lib.make_optimizer(config.training, 8)
  init = lambda: request_task.init_params(model, config)  # noqa: E731
  return state_lib.abstract_state(init, optimizer, mesh_lib.local_mesh())


def everything(workdir, target):
  """All that training, evaluation, recommending and serving read of a run, as arrays and texts."""
  config = load_config(str(workdir))
  found = {
    "config": repr(config)[len(repr(config.workdir)) :],
    "behaviors": inputs_lib.load_behaviors(config),
  }
  dataset = load_dataset(config.data)
  inputs_lib.check_same_log(config, dataset)
  tokenizer, index = inputs_lib.tokenizer_of(config, dataset)
  folds, ecpm = inputs_lib.load_features(str(workdir))
  assert isinstance(folds, NeighborFolds)
  trends = Trends.load(str(workdir / "features"))
  with Checkpointer(
    run.checkpoint_dir(config), best_metric=run.best_metric(config), read_only=True
  ) as reader:
    found["steps"] = reader.steps, reader.best_step
    best = reader.restore_params(target.params)
    resumed = [reader.restore(target, step) for step in reader.steps]
  reward = reward_run.Scale.load(str(workdir / "reward"))
  names = ("logits", "corrected", "value_factor")
  calibration = files.load_fields(str(workdir / "reward" / "calibration.json"), *names)
  candidates = Candidates.load(str(workdir / "candidates" / "round_00000004.npz"))
  parts = (
    tokenizer.centroids,
    tokenizer.config,
    tokenizer.bridge,
    index,
    folds,
    ecpm,
    trends,
    reward,
    candidates,
  )
  arrays = [vars(part) if hasattr(part, "__dict__") else part for part in parts]
  return found, jax.tree.leaves((arrays, calibration, best, [tuple(one) for one in resumed]))


def same(one, other):
  return one[0] == other[0] and all(
    np.array_equal(a, b) for a, b in zip(one[1], other[1], strict=True)
  )


def kinds(workdir):
  """The files of a run that somebody reads, by kind: those whose names differ by digits or
  hashes alone are one.
  """
  found = {}
  for path in sorted(path for path in workdir.rglob("*") if path.is_file() and path.stat().st_size):
    name = path.relative_to(workdir)
    if name.parts[0] not in _NOT_READ:
      hashed = name.parent.name == "d"
      found.setdefault(str(name.parent / "hash" if hashed else name), []).append(path)
  return found


def flip_and_read(workdir, target, whole, path, bit):
  """Reads the run with one bit of a file flipped. Returns how it went; fails where that goes
  unnoticed.
  """
  content = path.read_bytes()
  flipped = bytearray(content)
  flipped[bit // 8] ^= 1 << bit % 8
  path.write_bytes(bytes(flipped))
  try:
    assert same(everything(workdir, target), whole), (
      f"{path}, bit {bit}: other numbers, and nobody noticed"
    )
  except (ValueError, FileNotFoundError) as error:
    assert str(path) in str(error) and "\n" not in str(error), f"{path}, bit {bit}: {error!r}"
    return "refused"
  finally:
    path.write_bytes(content)
  return "equal"


@pytest.mark.parametrize("count", [9, pytest.param(30, marks=pytest.mark.long)])
def test_a_flipped_bit_in_any_kind_of_file_is_refused_by_name(workdir, target, count):
  whole, rng, refused = everything(workdir, target), random.Random(0), 0
  chosen = kinds(workdir)
  assert {"config.json", "index/ads.npz", "features/log.json", "checkpoints/4/SHA256SUMS"} <= set(
    chosen
  )
  for paths in list(chosen.values())[:: max(1, len(chosen) // count)]:
    path = rng.choice(paths)
    refused += (
      flip_and_read(workdir, target, whole, path, rng.randrange(8 * path.stat().st_size))
      == "refused"
    )
  # A bit of what nobody reads (padding, a time) may change nothing.
  assert refused >= 0.8 * count


@pytest.mark.long
def test_200_flipped_bits_are_refused_by_name_or_change_nothing(workdir, target):
  whole, rng, ends = everything(workdir, target), random.Random(1), []
  paths = [path for some in kinds(workdir).values() for path in some]
  for number in range(200):
    path = paths[number % len(paths)]
    ends.append(flip_and_read(workdir, target, whole, path, rng.randrange(8 * path.stat().st_size)))
  print({end: ends.count(end) for end in set(ends)})
  assert ends.count("refused") >= 180
