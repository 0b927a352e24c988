"""OneRec-V2: a lazy decoder-only generator with autoregressive levels; the paper's GR-Base.

Zhou et al., "OneRec-V2 Technical Report", 2025. The context is projected once and shared by all
layers; every level goes through all layers (K = 0), and nothing is copied.
"""

import dataclasses
from typing import ClassVar

from gr4ad_jax.config import Config
from gr4ad_jax.models import knobs
from gr4ad_jax.models.gr4ad import GR4AD


class OneRecV2(GR4AD):
  """GR4AD without lazy layers, copy path and history bias; train it with --value_weight=none for
  the published loss.
  """

  reads: ClassVar[frozenset[str]] = GR4AD.reads - knobs.BIAS - {"lazy_layers", "copy"}

  @classmethod
  def build(cls, config: Config, num_ads: int) -> "OneRecV2":
    del num_ads
    plain = dataclasses.replace(config.model, lazy_layers=0, copy="off", history_bias=False)
    return cls(plain, config.sid.codebooks, config.training.remat)
