"""BTDNet put together, rebuilt from the abstract of arXiv:2502.08486: Swin and BERT, fused at every
stage, a decoder of one or two streams, and what is rebuilt in training.
"""

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from gr4ad_jax.btdnet.bert import Bert, BertSize
from gr4ad_jax.btdnet.decoder import Decoder
from gr4ad_jax.btdnet.fusion import GatedFusion, VisionToWords
from gr4ad_jax.btdnet.object_learning import Hidden, TextRebuilder, VisionRebuilder
from gr4ad_jax.btdnet.swin import PatchMerging, Stage, Stem, SwinSize

# Of ImageNet's red, green and blue, of colours from 0 to 1.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Parts:
  """Which of the three parts there are.

  Attributes:
    bsc: "off"; "vision", words into pixels without norms; "words", pixels into words; or "both".
    decoder: "single", "shared" or "twin", as of `Decoder`.
    decoder_width: channels of the decoder.
    subpixel: as of `Head`.
    language_norm: as of `WordReader`.
    dmols: "off", "text", "vision" or "both": what is rebuilt.
  """

  bsc: str = "both"
  decoder: str = "twin"
  decoder_width: int = 64
  subpixel: bool = True
  language_norm: bool = False
  dmols: str = "off"


@flax.struct.dataclass
class Outputs:
  """What a pass gives; maps and words are in the compute dtype, logits in float32.

  Attributes:
    logits_BHW2: background and target, pixel by pixel.
    levels: logits of the decoder's levels [B, h, w, 2], deepest first; empty of a single stream.
    deepest_BHWC: the last stage's output.
    text_BNE: the encoder's words, before any pixel touched them.
    rebuilt_text_BNE: words with the noun hidden, rebuilt; None: not asked for.
    rebuilt_map_BHWC: the last stage's output, its dropped cells rebuilt; None: not asked for.
  """

  logits_BHW2: jax.Array
  levels: tuple[jax.Array, ...]
  deepest_BHWC: jax.Array
  text_BNE: jax.Array
  rebuilt_text_BNE: jax.Array | None = None
  rebuilt_map_BHWC: jax.Array | None = None


def target_logit(logits_BHW2: jax.Array) -> jax.Array:
  """log p / (1 - p) of the target under softmax([b, t]): [B, H, W]; positive: it is the target."""
  return logits_BHW2[..., 1] - logits_BHW2[..., 0]


def normalized(image_BHW3: jax.Array) -> jax.Array:
  """Bytes 0 to 255 as float32, less ImageNet's mean, over its deviation."""
  return (image_BHW3.astype(jnp.float32) / 255 - jnp.asarray(MEAN)) / jnp.asarray(STD)


class BTDNet(nn.Module):
  """Image and sentence to a mask.

  Attributes:
    vision: the Swin's shape.
    text: the BERT's shape.
    parts: which parts there are.
    dtype: of matmuls.
    remat: what is kept of blocks and layers for the backward pass, a name of `remat.POLICIES`.
  """

  vision: SwinSize
  text: BertSize
  parts: Parts = Parts()
  dtype: jnp.dtype = jnp.dtype(jnp.float32)
  remat: str = "none"

  def setup(self):
    stages = range(len(self.vision.depths))
    parts = self.parts
    self.encoder = Bert(self.text, self.dtype, self.remat)
    self.stem = Stem(self.vision, self.dtype)
    self.stages = [Stage(self.vision, i, self.remat) for i in stages]
    self.merges = [PatchMerging() for _ in stages[1:]]
    correlated = parts.bsc in ("vision", "both")
    self.fusions = [GatedFusion(correlated, parts.language_norm) for _ in stages]
    if parts.bsc in ("words", "both"):
      # The last stage's words are read by the rebuilding of dropped cells alone.
      self.to_words = [VisionToWords() for _ in stages[:-1]]
    self.decoder = Decoder(parts.decoder, parts.decoder_width, parts.subpixel)
    if parts.dmols in ("text", "both"):
      self.text_rebuilder = TextRebuilder()
    if parts.dmols in ("vision", "both"):
      self.vision_rebuilder = VisionRebuilder()

  def __call__(
    self,
    image_BHW3: jax.Array,
    tokens_BN: jax.Array,
    mask_BN: jax.Array,
    *,
    hidden: Hidden | None = None,
    train: bool = False,
  ) -> Outputs:
    """Args:
    image_BHW3: bytes, 0 to 255.
    tokens_BN: word pieces of the sentence.
    mask_BN: bool, False at padding.
    hidden: what D-MOLS hides; None: nothing is rebuilt.
    train: apply dropout and stochastic depth.
    """
    height, width = image_BHW3.shape[1:3]
    text_BNE = self.encoder(tokens_BN, mask_BN, train)
    maps, words_BNE = self.fused_stages(image_BHW3, text_BNE, mask_BN, train)
    logits, levels = self.decoder(maps, height, width)
    text_rebuilt = None
    map_rebuilt = None
    if hidden is not None and self.parts.dmols in ("text", "both"):
      # A second pass of the encoder with the same parameters: the noun is not to be
      # read from the first.
      masked_BNE = self.encoder(hidden.tokens_BN, mask_BN, train)
      text_rebuilt = self.text_rebuilder(masked_BNE, maps[-1])
    if hidden is not None and self.parts.dmols in ("vision", "both"):
      map_rebuilt = self.vision_rebuilder(maps[-1], hidden.dropped_BHW, words_BNE, mask_BN)
    return Outputs(logits, levels, maps[-1], text_BNE, text_rebuilt, map_rebuilt)

  def fused_stages(
    self, image_BHW3: jax.Array, words_BNE: jax.Array, mask_BN: jax.Array, train: bool
  ) -> tuple[list[jax.Array], jax.Array]:
    """Each stage's output [B, H, W, C], shallowest first, and the words after all stages."""
    x = self.stem(normalized(image_BHW3))
    maps = []
    for i, stage in enumerate(self.stages):
      if i:
        x = self.merges[i - 1](x)
      x = stage(x, train)
      B, H, W, C = x.shape
      seen = x
      # Fusion knows pixels and no places: (B, H, W, C) -> (B, H·W, C), and back below.
      x, out = self.fusions[i](x.reshape(B, H * W, C), words_BNE, mask_BN)
      x = x.reshape(B, H, W, C)
      maps.append(out.reshape(B, H, W, C))
      if self.parts.bsc in ("words", "both") and i < len(self.to_words):
        # Both ways read what the stage made, and not what fusion made of it.
        words_BNE = self.to_words[i](words_BNE, seen)
    return maps, words_BNE
