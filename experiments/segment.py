"""Finds in an image what a sentence names, by a trained BTDNet (rebuilt from the abstract of
arXiv:2502.08486). Writes the mask, and the image with the mask in colour.

python -m experiments.segment --workdir=runs/btdnet --image=field.png
--text="the truck left of the long building"
"""

import os

from absl import flags

from gr4ad_jax import files
from gr4ad_jax.config import ConfigError
from gr4ad_jax.data.extras import optional
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache
from gr4ad_jax.segmentation import plots
from gr4ad_jax.segmentation.segmenter import Segmenter

from . import flags as flags_lib

_WORKDIR = flags.DEFINE_string("workdir", "", "The directory of a trained run.")
_IMAGE = flags.DEFINE_string("image", "", "The picture.")
_TEXT = flags.DEFINE_string("text", "", "What to find in it.")
_OUTPUT = flags.DEFINE_string(
  "output", "", "Folder of <image>_mask.png and <image>_overlay.png; empty: that of the picture."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "'best', 'last', or a step.")


def main(argv):
  """Segments one image."""
  del argv
  for flag in (_WORKDIR, _IMAGE, _TEXT):
    if not flag.value.strip():
      raise ConfigError(f"--{flag.name}= is not allowed: name it")
  enable_compilation_cache()
  segmenter = Segmenter.load(_WORKDIR.value, flags_lib.checkpoint(_CHECKPOINT.value))
  found = segmenter.segment(_IMAGE.value, _TEXT.value)
  if found.unknown:
    print(f"warning: the run's sentences have no {', '.join(found.unknown)}")
  image = optional("PIL.Image", "segmentation")
  folder = _OUTPUT.value or os.path.dirname(_IMAGE.value)
  stem = os.path.splitext(os.path.basename(_IMAGE.value))[0]
  pictures = {
    "mask": image.fromarray(found.mask),
    "overlay": image.fromarray(plots.overlay(found.image, found.mask)),
  }
  for name, picture in pictures.items():
    path = os.path.join(folder, f"{stem}_{name}.png")
    with files.replacing(path, summed=False) as part:
      picture.save(part)
    print(f"written: {path}")
  print(f"{found.mask.sum()} of {found.mask.size} pixels, {100 * found.mask.mean():.2f} %")
  return 0


if __name__ == "__main__":
  flags_lib.run(main)
