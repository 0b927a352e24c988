"""A process that gives the batches of a folder of examples, one line a step, until it is killed:

python -m tests.examples.drawn <folder> <first step> <processes of the loader>
"""

import hashlib

import numpy as np
from absl import app

from gr4ad_jax.config import DataConfig
from gr4ad_jax.examples.folder import ExampleFolder
from gr4ad_jax.examples.loading import GrainSource
from gr4ad_jax.examples.order import TrainingOrder
from gr4ad_jax.examples.reading import ExampleContexts
from tests.examples.made import CODES

BATCH = 8


def contexts_of(path):
  """Contexts of a folder of `made.config_of`, and the order in which its requests are drawn."""
  folder = ExampleFolder.open(path)
  kept = folder.manifest["settings"]
  slots = {name: kept[name] for name in ("history_slots", "neighbor_slots", "rising_slots")}
  contexts = ExampleContexts(folder, CODES, DataConfig(targets=3, **slots))
  return contexts, TrainingOrder(np.arange(folder.manifest["requests"]), BATCH, seed=5)


def said_of(batch, requests):
  """One line: the requests of a step, and a hash of all that their batch holds."""
  content = b"".join(np.ascontiguousarray(column).tobytes() for column in batch)
  return f"{' '.join(map(str, requests.tolist()))} {hashlib.sha256(content).hexdigest()}"


def main(path, first, processes):
  """Never ends."""
  contexts, order = contexts_of(path)
  source = GrainSource(contexts, order, processes)
  step = first
  while True:
    batch = source.batch(step)
    print(said_of(batch, order.step(step)[0]), flush=True)
    step += 1


if __name__ == "__main__":
  # By absl, whose flags grain reads.
  app.run(lambda argv: main(argv[1], *map(int, argv[2:])))
