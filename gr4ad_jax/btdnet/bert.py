"""BERT's encoder: the words of a sentence, each in the light of the others.

Source: Devlin et al., "BERT", NAACL 2019. Norms come after the sums.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from gr4ad_jax.btdnet.layers import MLP, LayerNorm, SelfAttention, key_bias
from gr4ad_jax.models.layers import Dropout
from gr4ad_jax.models.remat import rematerialized

EPSILON = 1e-12  # of BERT's norms


@dataclasses.dataclass(frozen=True)
class BertSize:
  """A BERT's shape.

  Attributes:
    vocab: word pieces.
    width: of a token.
    layers: of self-attention.
    heads: heads (H) a layer.
    hidden: width inside the MLP.
    positions: most tokens of a text.
    kinds: of segments; all tokens here are of the first.
    dropout: rate, on embeddings and both branches of a layer.
  """

  vocab: int
  width: int
  layers: int
  heads: int
  hidden: int
  positions: int = 512
  kinds: int = 2
  dropout: float = 0.0


class BertLayer(nn.Module):
  """LN(x + attention(x)), then LN(x + MLP(x)).

  Attributes:
    size: of the encoder.
  """

  size: BertSize

  @nn.compact
  def __call__(self, x_BNE: jax.Array, mask_BN: jax.Array, train: bool) -> jax.Array:
    y = SelfAttention(self.size.heads, name="attention")(x_BNE, key_bias(mask_BN))
    y = Dropout(self.size.dropout)(y, deterministic=not train)
    x = LayerNorm(EPSILON, name="attention_norm")(x_BNE + y)
    y = MLP(self.size.hidden, name="mlp")(x)
    y = Dropout(self.size.dropout)(y, deterministic=not train)
    return LayerNorm(EPSILON, name="mlp_norm")(x + y)


class Bert(nn.Module):
  """Token numbers to vectors.

  Attributes:
    size: of the encoder.
    dtype: that the vectors have.
    remat: what is kept of a layer for the backward pass, a name of `remat.POLICIES`.
  """

  size: BertSize
  dtype: jnp.dtype = jnp.dtype(jnp.float32)
  remat: str = "none"

  @nn.compact
  def __call__(self, tokens_BN: jax.Array, mask_BN: jax.Array, train: bool = False) -> jax.Array:
    """Encodes texts.

    Args:
      tokens_BN: word pieces, int.
      mask_BN: bool, False at padding.
      train: apply dropout.

    Returns:
      [B, N, E]; what stands at padding means nothing.
    """
    size = self.size
    N = tokens_BN.shape[1]

    def table(name, rows, axes):
      init = nn.with_logical_partitioning(nn.initializers.truncated_normal(0.02), axes)
      return self.param(name, init, (rows, size.width))

    words = jnp.take(table("words", size.vocab, ("vocab", "embed")), tokens_BN, axis=0)
    # (N, E) is added to (B, N, E): all texts have the same places.
    places_NE = table("positions", size.positions, (None, "embed"))[:N]
    # The second kind is kept, though no text has it, so that published tables fit.
    kind_E = table("kinds", size.kinds, (None, "embed"))[0]
    x = LayerNorm(EPSILON, name="norm")((words + places_NE + kind_E).astype(self.dtype))
    x = Dropout(size.dropout)(x, deterministic=not train)
    # Argument 3 is `train`, a Python bool that must not be traced.
    layer = rematerialized(BertLayer, self.remat, (3,))
    for i in range(size.layers):
      x = layer(size, name=f"layer_{i}")(x, mask_BN, train)
    return x
