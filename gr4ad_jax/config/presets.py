"""Model sizes by name, with the paper's codebooks and beams for the large ones
(docs/design/method.md §2.5).
"""

from gr4ad_jax.config import Config, ModelConfig, SearchConfig, SidConfig


def _sized(width: int) -> ModelConfig:
  """A model of the paper's shape (L = 9, K = 6, head size 64) at a width."""
  return ModelConfig(layers=9, lazy_layers=6, width=width, heads=width // 64, kv_groups=width // 64)


PRESETS = {
  "tiny": ModelConfig(),
  "0.03b": _sized(320),
  "0.08b": _sized(576),
  # Heads of 128: a tile of a TPU's matrix unit has 128 columns (v5e) or 256 (v6e), and 64 fill half
  # of one or less. 768 and the feed-forward's 3,840 are multiples of 256. At five times the width
  # it has the parameters that two more heads would otherwise bring.
  "0.16b": ModelConfig(layers=9, lazy_layers=6, width=768, heads=6, kv_groups=6, ffn_multiple=5),
  "0.16b_832": _sized(832),
  "0.32b": _sized(1280),
}
"""Model sizes by name; the large ones carry the paper's names (docs/design/method.md §2.5).

The paper tells neither widths nor heads. `0.16b` was of width 832 with 13 heads of 64 until its
sizes were made to fill an accelerator's units. That model is `0.16b_832` now, for comparison with
what was measured on it: 832 is six and a half tiles of 128. Which of the two learns better is not
measured.
"""

# The paper's; most parameters are the codes'.
LARGE_CODEBOOKS = (16384, 4096, 1024)
LARGE_BEAMS = (512, 512, 512)


def preset(name: str) -> Config:
  """The config of a size of `PRESETS`: the large ones come with the paper's codebooks and beams.

  Source: docs/design/method.md §1 and §4.
  """
  if name == "tiny":
    return Config()
  return Config(
    sid=SidConfig(codebooks=LARGE_CODEBOOKS),
    model=PRESETS[name],
    search=SearchConfig(beams=LARGE_BEAMS),
  )
