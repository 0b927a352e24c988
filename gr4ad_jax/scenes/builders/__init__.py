"""TFDS builders of referring segmentation, one a data set. Needs the `data` extra."""

from gr4ad_jax.scenes.builders.aerial_scenes import AerialScenes
from gr4ad_jax.scenes.builders.base import ReferringBuilder
from gr4ad_jax.scenes.builders.ref_seg_rs import RefSegRS
from gr4ad_jax.scenes.builders.rrsis_d import RRSISD

BUILDERS: dict[str, type[ReferringBuilder]] = {
  "aerial_scenes": AerialScenes,
  "ref_seg_rs": RefSegRS,
  "rrsis_d": RRSISD,
}
