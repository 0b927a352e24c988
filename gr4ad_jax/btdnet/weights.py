"""Published weights of Swin and BERT, from safetensors files, as parameters of this library.

Swin is known by Hugging Face's names and by the original ones; BERT by Hugging Face's, with or
without a `bert.` before them, and by its older gamma and beta.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gr4ad_jax.btdnet.bert import BertSize
from gr4ad_jax.btdnet.swin import SwinSize
from gr4ad_jax.data.extras import optional
from gr4ad_jax.data.schema import DataError


@dataclasses.dataclass(frozen=True)
class Piece:
  """Where one of our arrays comes from.

  Attributes:
    path: of our parameter, from the top.
    names: tensors of the file; several are joined along their first axis.
    change: (their arrays, joined) -> ours.
  """

  path: tuple[str, ...]
  names: tuple[str, ...]
  change: Callable[[np.ndarray], np.ndarray] = lambda x: x


def _turned(x: np.ndarray) -> np.ndarray:
  """[out, in] -> [in, out]."""
  return x.T


def _linear(path: tuple[str, ...], *names: str, bias: bool = True) -> list[Piece]:
  pieces = [Piece((*path, "kernel"), tuple(f"{name}.weight" for name in names), _turned)]
  if bias:
    pieces.append(Piece((*path, "bias"), tuple(f"{name}.bias" for name in names)))
  return pieces


def _norm(path: tuple[str, ...], name: str) -> list[Piece]:
  return [Piece((*path, "scale"), (f"{name}.weight",)), Piece((*path, "bias"), (f"{name}.bias",))]


def bert_pieces(size: BertSize) -> list[Piece]:
  """Parameters of `bert.Bert` by Hugging Face's names."""
  pieces = [
    Piece((own,), (f"embeddings.{name}_embeddings.weight",))
    for own, name in (("words", "word"), ("positions", "position"), ("kinds", "token_type"))
  ]
  pieces += _norm(("norm",), "embeddings.LayerNorm")
  for i in range(size.layers):
    at = f"encoder.layer.{i}"
    layer = f"layer_{i}"
    heads = [f"{at}.attention.self.{part}" for part in ("query", "key", "value")]
    pieces += _linear((layer, "attention", "qkv"), *heads)
    pieces += _linear((layer, "attention", "out"), f"{at}.attention.output.dense")
    pieces += _norm((layer, "attention_norm"), f"{at}.attention.output.LayerNorm")
    pieces += _linear((layer, "mlp", "up"), f"{at}.intermediate.dense")
    pieces += _linear((layer, "mlp", "down"), f"{at}.output.dense")
    pieces += _norm((layer, "mlp_norm"), f"{at}.output.LayerNorm")
  return pieces


def swin_pieces(size: SwinSize) -> list[Piece]:
  """Parameters of a `model.BTDNet` that are a Swin's, by Hugging Face's names."""
  pieces = [
    Piece(
      ("stem", "projection", "kernel"),
      ("embeddings.patch_embeddings.projection.weight",),
      lambda x: x.transpose(2, 3, 1, 0),  # [out, in, rows, columns] -> [rows, columns, in, out]
    ),
    Piece(("stem", "projection", "bias"), ("embeddings.patch_embeddings.projection.bias",)),
    *_norm(("stem", "norm"), "embeddings.norm"),
  ]
  for i, depth in enumerate(size.depths):
    for j in range(depth):
      pieces += _block((f"stages_{i}", f"block_{j}"), f"encoder.layers.{i}.blocks.{j}")
    if i + 1 < len(size.depths):
      down = f"encoder.layers.{i}.downsample"
      pieces += _norm((f"merges_{i}", "norm"), f"{down}.norm")
      pieces += _linear((f"merges_{i}", "reduction"), f"{down}.reduction", bias=False)
  return pieces


def _block(path: tuple[str, ...], at: str) -> list[Piece]:
  heads = [f"{at}.attention.self.{part}" for part in ("query", "key", "value")]
  table = f"{at}.attention.self.relative_position_bias_table"
  windows = (*path, "windows")
  return [
    *_norm((*path, "norm_before"), f"{at}.layernorm_before"),
    *_linear((*windows, "attention", "qkv"), *heads),
    *_linear((*windows, "attention", "out"), f"{at}.attention.output.dense"),
    Piece((*windows, "bias_table"), (table,), np.ravel),
    *_norm((*path, "norm_after"), f"{at}.layernorm_after"),
    *_linear((*path, "mlp", "up"), f"{at}.intermediate.dense"),
    *_linear((*path, "mlp", "down"), f"{at}.output.dense"),
  ]


_UNUSED = re.compile(
  r"(^|\.)(pooler|cls|classifier|head|decode_head)\.|position_ids$|relative_position_index$|attn_mask$"
  r"|^layernorm\.|^norm\d?\."
)
"""Tensors of files that no parameter here takes: heads, indices, the norm after the stages."""

_ORIGINAL = (  # of Swin's first authors -> Hugging Face's
  (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
  (r"^patch_embed\.norm\.", "embeddings.norm."),
  (r"^layers\.", "encoder.layers."),
  (r"\.norm1\.", ".layernorm_before."),
  (r"\.norm2\.", ".layernorm_after."),
  (r"\.attn\.relative_position_bias_table$", ".attention.self.relative_position_bias_table"),
  (r"\.attn\.proj\.", ".attention.output.dense."),
  (r"\.mlp\.fc1\.", ".intermediate.dense."),
  (r"\.mlp\.fc2\.", ".output.dense."),
)


def load_bert(path: str, params: Mapping[str, Any], size: BertSize) -> dict:
  """BERT's parameters from a file; as `load`."""
  return load(path, params, bert_pieces(size))


def load_swin(path: str, params: Mapping[str, Any], size: SwinSize) -> dict:
  """A model's parameters, those of its Swin from a file; as `load`."""
  return load(path, params, swin_pieces(size))


def load(path: str, params: Mapping[str, Any], pieces: list[Piece]) -> dict:
  """Parameters with those that a file holds put in.

  Args:
    path: .safetensors.
    params: ours, unboxed: arrays, or their shapes.
    pieces: which of them come from the file.

  Returns:
    A new tree; float32 arrays in the place of what was loaded.

  Raises:
    FileNotFoundError: there is no such file.
    DataError: no safetensors file, or a tensor that is missing, has another shape, or has no place;
      names it, with both shapes.
    ImportError: the package safetensors is missing.
  """
  # All of the file is read, and what nothing takes is looked at in the end.
  found = _read(path)
  out = _copied(params)
  for piece in pieces:
    parts = [_taken(found, name, path) for name in piece.names]
    # Queries, keys and values stand apart in files, and are one product here.
    made = piece.change(np.concatenate(parts) if len(parts) > 1 else parts[0])
    *above, last = piece.path
    place = out
    for name in above:
      place = place[name]
    if place[last].shape != made.shape:
      theirs = " and ".join(f"{n} {list(p.shape)}" for n, p in zip(piece.names, parts, strict=True))
      raise DataError(
        f"{path}: {theirs} gives {'.'.join(piece.path)} the shape {list(made.shape)}, "
        f"and the model's is {list(place[last].shape)}"
      )
    place[last] = np.asarray(made, np.float32)
  used = {name for piece in pieces for name in piece.names}
  # A tensor that nothing here takes may mean another model.
  for name in found.keys() - used:
    if not _UNUSED.search(name):
      raise DataError(f"{path}: the model has no place for {name} {list(found[name].shape)}")
  return out


def _copied(tree: Any) -> Any:
  return {k: _copied(v) for k, v in tree.items()} if isinstance(tree, Mapping) else tree


def _taken(found: dict[str, np.ndarray], name: str, path: str) -> np.ndarray:
  if name not in found:
    raise DataError(f"{path}: there is no tensor {name}")
  return found[name]


def _read(path: str) -> dict[str, np.ndarray]:
  """The tensors by Hugging Face's names, without what stands before them all."""
  safetensors = optional("safetensors.numpy", "segmentation")
  if not os.path.isfile(path):
    raise FileNotFoundError(f"{path}: there is no such file of weights")
  try:
    tensors = safetensors.load_file(path)
  except Exception as error:
    # Of the header, of a dtype that NumPy lacks, or of a file that was cut short.
    reason = " ".join(str(error).split())[:150]
    raise DataError(f"{path}: no safetensors file that can be read ({reason})") from error
  found = {}
  for name, tensor in tensors.items():
    plain = _plain(name)
    if plain.endswith(".attn.qkv.weight") or plain.endswith(".attn.qkv.bias"):
      at, _, ending = plain.rpartition(".attn.qkv.")
      if len(tensor) % 3:
        raise DataError(f"{path}: {name} {list(tensor.shape)} is no multiple of 3 rows")
      # The published order of the three: queries, keys, values.
      for part, third in zip(("query", "key", "value"), np.split(tensor, 3), strict=True):
        found[f"{at}.attention.self.{part}.{ending}"] = third
    else:
      found[plain] = tensor
  return found


def _plain(name: str) -> str:
  name = re.sub(r"^(model\.|backbone\.)?(bert\.|swin\.)?", "", name)
  name = re.sub(r"\.gamma$", ".weight", name)
  name = re.sub(r"\.beta$", ".bias", name)
  for pattern, other in _ORIGINAL:
    name = re.sub(pattern, other, name)
  return name
