"""Makes of a trained run a folder to take away: weights, codes, features, a card with figures.

python -m experiments.publish --workdir=runs/online_retail --out=online_retail

Weights are in half precision, as safetensors. Recommend, serve and evaluate take the folder as a
--workdir, and `Recommender.from_pretrained` opens it.
"""

import os

from absl import flags

from gr4ad_jax.config import ConfigError
from gr4ad_jax.delivery import publish
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache
from gr4ad_jax.training.weights import PRECISIONS

from . import flags as flags_lib
from .progress import tell

_OUT = flags.DEFINE_string("out", "", "The folder to make.")
_NAME = flags.DEFINE_string("name", "", "Name on the card; empty: that of the folder.")
_LICENSE = flags.DEFINE_string("license", "", "Of the weights, on the card, as cc-by-4.0.")
_NOTE = flags.DEFINE_string("note", "", "A sentence for the card, such as whose the data are.")
_PRECISION = flags.DEFINE_enum("precision", PRECISIONS[0], PRECISIONS, "Of the weights.")


def main(argv):
  """Publishes one run."""
  del argv
  if not _OUT.value:
    raise ConfigError("--out= is not allowed: name the folder to make")
  config = flags_lib.config_from_workdir()
  enable_compilation_cache()
  name = _NAME.value or os.path.basename(os.path.abspath(_OUT.value))
  about = publish.About(name, _LICENSE.value, _NOTE.value)
  card = publish.publish(config, _OUT.value, about, _PRECISION.value, tell)
  print(publish.in_words(card))
  print(f"written to {_OUT.value}")
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  flags_lib.run(main)
