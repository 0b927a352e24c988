"""OneRec-V2: a decoder-only generator whose levels are autoregressive. It is the paper's GR-Base.

Zhou et al., "OneRec-V2 Technical Report", 2025. The context is projected once and shared by all
layers, which that report calls a lazy decoder. No layer is lazy in the sense of LazyAR: every level
goes through all of them (K = 0). Nothing is copied.
"""

import dataclasses
from typing import ClassVar

from gr4ad_jax.config import Config
from gr4ad_jax.models import knobs
from gr4ad_jax.models.gr4ad import GR4AD


class OneRecV2(GR4AD):
  """GR4AD without lazy layers, copy path and history bias.

  The published loss is that of --value_weight=none.
  """

  reads: ClassVar[frozenset[str]] = GR4AD.reads - knobs.BIAS - {"lazy_layers", "copy"}

  @classmethod
  def build(cls, config: Config, num_ads: int) -> "OneRecV2":
    """The module of a config. What it lacks is switched off, whatever the config says."""
    del num_ads
    plain = dataclasses.replace(config.model, lazy_layers=0, copy="off", history_bias=False)
    return cls(plain, config.sid.codebooks, config.training.remat)
