"""D-MOLS, "dual-modal object learning strategy": what is hidden of one modality is rebuilt from the
other, in training alone.

Rebuilt from the abstract of arXiv:2502.08486: only that there is a reconstruction objective over
both modalities is published.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from gr4ad_jax.btdnet.layers import CrossAttention, LayerNorm, coordinates
from gr4ad_jax.models.layers import Linear


@flax.struct.dataclass
class Hidden:
  """What is hidden in a training step.

  Attributes:
    tokens_BN: the sentence with its object noun as [MASK].
    dropped_BHW: cells of the deepest map that are dropped, bool.
  """

  tokens_BN: jax.Array
  dropped_BHW: jax.Array


class TextRebuilder(nn.Module):
  """Words of a sentence with a hidden noun, by one layer of cross-attention over a map's cells."""

  @nn.compact
  def __call__(self, masked_BNE: jax.Array, map_BHWC: jax.Array) -> jax.Array:
    """Returns: the words' vectors as rebuilt, [B, N, E]."""
    B, H, W, C = map_BHWC.shape
    width = masked_BNE.shape[-1]
    # The map's cells become one axis of keys: (B, H, W, C) -> (B, H·W, C).
    read = CrossAttention(width, name="read")(masked_BNE, map_BHWC.reshape(B, H * W, C))
    rebuilt = LayerNorm(name="norm")(masked_BNE + read)
    return Linear(width, ("embed", "mlp"), bias=True, name="out")(rebuilt)


class VisionRebuilder(nn.Module):
  """Dropped cells of a map, by one layer of cross-attention over the words."""

  @nn.compact
  def __call__(
    self, map_BHWC: jax.Array, dropped_BHW: jax.Array, words_BNE: jax.Array, mask_BN: jax.Array
  ) -> jax.Array:
    """Returns: the map as rebuilt, [B, H, W, C]; only its dropped cells are of interest."""
    B, H, W, C = map_BHWC.shape
    init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None,))
    gap_C = self.param("gap", init, (C,)).astype(map_BHWC.dtype)
    x = jnp.where(dropped_BHW[..., None], gap_C, map_BHWC)
    # Dropped cells have one learned vector. A gap alone would not know where it is, so every cell
    # gets its place: (1, H, W, C), the same for all images.
    place = jnp.asarray(coordinates(H, W), map_BHWC.dtype)
    x = x + Linear(C, (None, "embed"), name="place")(place)[None]
    x = x.reshape(B, H * W, C)
    x = x + CrossAttention(C, name="read")(x, words_BNE, mask_BN)
    rebuilt = Linear(C, ("embed", "mlp"), bias=True, name="out")(LayerNorm(name="norm")(x))
    return rebuilt.reshape(B, H, W, C)
