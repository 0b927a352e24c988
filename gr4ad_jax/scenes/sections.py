"""The knobs of BTDNet's runs (rebuilt from the abstract of arXiv:2502.08486)."""

import dataclasses

from gr4ad_jax.knobs import knob


@dataclasses.dataclass(frozen=True)
class SegmentationConfig:
  """Data, model and loss of referring segmentation."""

  scenes: str = knob(
    "aerial_scenes",
    "Which data set: rendered scenes, or your own files in the layout of RefSegRS or RRSIS-D.",
    choices=("aerial_scenes", "ref_seg_rs", "rrsis_d"),
  )
  scenes_path: str = knob(
    "", "ref_seg_rs, rrsis_d: the folder of the data set.", free=True, place=True
  )
  scenes_dir: str = knob(
    "",
    "Where prepared scenes lie; empty: a folder in the user's cache.",
    free=True,
    place=True,
  )
  scenes_seed: int = knob(0, "aerial_scenes: seed of the generator.", low=0, high=2**31 - 1)
  train_scenes: int = knob(12_000, "aerial_scenes: scenes of training.", low=1)
  eval_scenes: int = knob(600, "aerial_scenes: scenes of valid, and of test.", low=1)
  eval_sentences: int = knob(
    512, "Valid sentences of a periodic evaluation: a fixed sample.", low=1, free=True
  )
  image_size: int = knob(64, "Rows and columns that images have, or are resized to.", low=16)
  max_pieces: int = knob(20, "Most word pieces of a sentence, its two marks counted (N).", low=3)
  swin: str = knob(
    "tiny",
    "Swin: tiny (widths 48, 96, 192), or a published size: T, S, B.",
    choices=("tiny", "T", "S", "B"),
  )
  swin_window: int = knob(8, "Rows and columns of a window.", low=2)
  drop_path: float = knob(0.0, "Stochastic depth of the last block.", low=0, high=0.9)
  stem: str = knob(
    "conv",
    "Pixels to patches: two convolutions, or one product a patch, as published weights have it.",
    choices=("conv", "patch"),
  )
  coordinates: bool = knob(True, "Patches know their place in the image.")
  bert: str = knob(
    "tiny",
    "Text encoder: tiny (1 layer, width 96), mini (MiniLM: 6 layers, width 384) or base.",
    choices=("tiny", "mini", "base"),
  )
  bert_dropout: float = knob(0.0, "Dropout rate of the text encoder.", low=0, high=0.9)
  vocab_path: str = knob(
    "", "vocab.txt of the word pieces; empty: the training sentences' own words.", place=True
  )
  bsc: str = knob(
    "both",
    "BSC: off (the base's fusion), words into pixels, pixels into words, or both.",
    choices=("off", "vision", "words", "both"),
  )
  language_norm: bool = knob(
    False, "Instance norm of what pixels take from words, as LAVT has it; slow from scratch."
  )
  decoder: str = knob(
    "twin",
    "The base's single stream; two that share their levels; or T-BTD's two.",
    choices=("single", "shared", "twin"),
  )
  decoder_width: int = knob(32, "Channels of the decoder.", low=1)
  subpixel: bool = knob(True, "A cell has 4 x 4 logits of its own; off: bilinear.")
  background_loss: bool = knob(True, "The background's stream has a loss of its own.")
  mask_loss: str = knob(
    "even",
    "Joint loss: cross-entropy and Dice, 1 to 1; or as peers train, .9 to .1 with class weights.",
    choices=("even", "peers"),
  )
  dmols: str = knob(
    "off",
    "D-MOLS: what is rebuilt in training.",
    choices=("off", "text", "vision", "both"),
  )
  dmols_weight: float = knob(0.05, "Weight of what is rebuilt beside the masks.", low=0)
  backbone_from: str = knob(
    "", "Swin weights (.safetensors) that a new run starts from; empty: random.", place=True
  )
  text_from: str = knob(
    "", "BERT weights (.safetensors) that a new run starts from; empty: random.", place=True
  )
  segment_dtype: str = knob(
    "auto",
    "Matmul dtype; auto: bfloat16 on accelerators, float32 on CPU.",
    choices=("auto", "float32", "bfloat16"),
    free=True,
  )
