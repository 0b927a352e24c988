"""Rendered scenes, the default: nothing is downloaded, and no image of any data set is in them."""

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.scenes import dataset
from gr4ad_jax.scenes.builders.base import ReferringBuilder, Told, nobody
from gr4ad_jax.scenes.knobs import SIDE
from gr4ad_jax.scenes.referring import Referring
from gr4ad_jax.scenes.sections import SegmentationConfig


class AerialScenes(ReferringBuilder):
  """`scenes/`: a scene graph, sentences whose referent a checker finds, a picture."""

  name = "aerial_scenes"

  @classmethod
  def options(cls, own: SegmentationConfig):
    names = ("scenes_seed", "train_scenes", "eval_scenes")
    return super().options(own) | {name: getattr(own, name) for name in names}

  @classmethod
  def read(cls, own: SegmentationConfig, told: Told = nobody) -> dict[str, Referring]:
    if own.image_size != SIDE:
      raise DataError(f"--image_size={own.image_size} is not allowed: scenes have {SIDE} pixels")
    # Each split has numbers of its own: more scenes of training change none of valid or test.
    sizes = {"train": own.train_scenes, "valid": own.eval_scenes, "test": own.eval_scenes}
    return {name: dataset.split(own.scenes_seed, name, size, told) for name, size in sizes.items()}
