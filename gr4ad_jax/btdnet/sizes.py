"""Sizes by name, and the module of some settings."""

import dataclasses

import jax
import jax.numpy as jnp

from gr4ad_jax.btdnet.bert import BertSize
from gr4ad_jax.btdnet.model import BTDNet, Parts
from gr4ad_jax.btdnet.swin import SwinSize

SWINS = {
  "tiny": SwinSize(48, (0, 2, 2), (2, 4, 8), 8),
  "T": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
  "S": SwinSize(96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
  "B": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
}
"""Swin by name; T, S and B are those of the paper, the window apart, which is a knob.

The first stage of tiny is its stem alone: attention among its many cells took a sixth of a step.
"""

BERTS = {
  "tiny": BertSize(0, 96, 1, 4, 192, positions=32),
  "mini": BertSize(0, 384, 6, 12, 1536),
  "base": BertSize(0, 768, 12, 12, 3072),
}
"""BERT by name; the vocabulary's size is the tokenizer's."""


def make(own, vocab: int, remat: str = "none") -> BTDNet:
  """The module of a run.

  Args:
    own: its `segmentation.sections.SegmentationConfig`.
    vocab: word pieces.
    remat: what is kept for the backward pass, a name of `remat.POLICIES`.
  """
  vision = dataclasses.replace(
    SWINS[own.swin],
    window=own.swin_window,
    drop_path=own.drop_path,
    stem=own.stem,
    coordinates=own.coordinates,
  )
  text = dataclasses.replace(BERTS[own.bert], vocab=vocab, dropout=own.bert_dropout)
  parts = Parts(
    bsc=own.bsc,
    decoder=own.decoder,
    decoder_width=own.decoder_width,
    subpixel=own.subpixel,
    language_norm=own.language_norm,
    dmols=own.dmols,
  )
  return BTDNet(vision, text, parts, dtype(own.segment_dtype), remat)


def dtype(name: str) -> jnp.dtype:
  """Matmul dtype: as asked, or bfloat16 where there is an accelerator."""
  if name != "auto":
    return jnp.dtype(name)
  return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)


def deepest(own) -> int:
  """Rows and columns of the last stage's map."""
  side = own.image_size
  for _ in range(2):  # the stem: two halvings
    side = -(-side // 2)
  for _ in SWINS[own.swin].depths[1:]:
    side = -(-side // 2)
  return side
