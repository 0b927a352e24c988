"""Content vectors of ads: from text by a frozen encoder, or made before by any model.

*Frozen* says that the encoder is not trained here. Training begins with the tower, on top of it.
"""

import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from gr4ad_jax.btdnet import sentence_encoder
from gr4ad_jax.data import schema
from gr4ad_jax.sid import templates as forms

CHUNK = 8192  # rows checked at once


class UnitRows:
  """Vectors [N, D], scaled to length 1 when rows are asked for. So a mapped file stays on disk."""

  def __init__(self, vectors_ND: np.ndarray):
    self.shape = vectors_ND.shape
    self._vectors = vectors_ND

  def __getitem__(self, rows: Any) -> np.ndarray:
    vectors_ND = np.asarray(self._vectors[rows], np.float32)
    # 1e-12: a row of zeros stays one.
    return vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-12)


def encode(
  ads: schema.AdTable, encoder: str, templates: Mapping[str, tuple[str, ...]] = forms.TEMPLATES
) -> np.ndarray:
  """Unit vectors of N ads, [N, D] float32, all in memory. `unit_rows` says from where."""
  return unit_rows(ads, encoder, templates)[:]


def unit_rows(
  ads: schema.AdTable, encoder: str, templates: Mapping[str, tuple[str, ...]] = forms.TEMPLATES
) -> UnitRows:
  """Unit vectors of N ads.

  Precedence: 1. `ads.vectors`, where the table brings them; 2. what `encoder` names.

  Args:
    ads: the ads.
    encoder: one of five. "wordllama". A .npy file, [N, D] in table order. A .parquet file with the
      columns `ad_id` and `vector`, matched by ad; without `ad_id` in table order. A folder with a
      BERT's model.safetensors, config.json and vocab.txt, which is run here. A folder with another
      sentence-transformers model, which needs that package.
    templates: ad form -> clauses of its text.

  Returns:
    Rows of length 1, float32. An ad whose vector is zero, as one without any text, keeps it. Those
    of a .npy file are read when asked for.

  Raises:
    schema.DataError: vectors of the wrong shape, not finite, or missing for an ad. Rows are counted
      from 1.
    FileNotFoundError: there is no such file or folder.
    ImportError: the encoder's package is not installed. The message names what to install.
  """
  if ads.vectors is not None:
    vectors_ND = ads.vectors
    source = "ads.vectors"
  elif encoder == "wordllama":
    vectors_ND = _wordllama(forms.verbalise(ads, templates))
    source = encoder
  elif not os.path.exists(encoder):
    raise FileNotFoundError(
      f"encoder {encoder!r}: neither 'wordllama' nor an existing .npy, .parquet or model folder"
    )
  elif encoder.endswith(".npy"):
    vectors_ND = _numpy_file(encoder)
    source = encoder
  elif encoder.endswith(".parquet"):
    vectors_ND = _parquet_file(encoder, ads)
    source = encoder
  elif os.path.isdir(encoder):
    vectors_ND = _model_folder(forms.verbalise(ads, templates), encoder)
    source = encoder
  else:
    raise schema.DataError(f"{encoder}: vectors are read from .npy or .parquet")
  # This leaves a memory-mapped file what it is.
  vectors_ND = np.asanyarray(vectors_ND)
  _check(vectors_ND, ads, source)
  return UnitRows(vectors_ND)


def _check(vectors_ND: np.ndarray, ads: schema.AdTable, source: str) -> None:
  """Raises DataError for vectors of another shape or type, or with numbers that are not finite."""
  if vectors_ND.ndim != 2 or vectors_ND.shape[0] != len(ads) or not vectors_ND.shape[1]:
    raise schema.DataError(
      f"{source}: vectors have shape {vectors_ND.shape}; [{len(ads)}, D] is needed, a row per ad"
    )
  if vectors_ND.dtype.kind not in "fiu":
    raise schema.DataError(f"{source}: vectors have dtype {vectors_ND.dtype}; numbers are needed")
  for at in range(0, len(vectors_ND), CHUNK):
    # As float32, in which they are used: a greater number of float64 is infinite there.
    bad = at + np.flatnonzero(
      ~np.isfinite(vectors_ND[at : at + CHUNK].astype(np.float32)).all(axis=1)
    )
    if len(bad):
      raise schema.DataError(
        f"{source}, row {bad[0] + 1} (ad {ads.ad_id[bad[0]]}): the vector is not finite"
      )


def _wordllama(texts: list[str]) -> np.ndarray:
  """[N, 256] vectors, not yet of length 1: `UnitRows` scales all alike."""
  return _wordllama_model().embed(texts, norm=False)


@functools.cache  # a server encodes one new ad at a time: the table is read once
def _wordllama_model() -> Any:
  """WordLlama's table. Raises ImportError that names the extra."""
  try:
    import wordllama
  except ImportError as error:
    raise ImportError("wordllama is missing: pip install 'gr4ad_jax[text]'") from error
  # The 256-wide table ships in the wheel: nothing is downloaded.
  folder = os.path.dirname(wordllama.__file__)
  return wordllama.WordLlama.load(cache_dir=folder, disable_download=True)


def _model_folder(texts: list[str], folder: str) -> np.ndarray:
  """A BERT is run here; any other sentence-transformers model by its own package."""
  if sentence_encoder.is_model(folder):
    vectors_ND = _bert(folder)(texts)
    # Else all texts without a word would be alike.
    vectors_ND[[not text.strip() for text in texts]] = 0
    return vectors_ND
  return _sentence_model(folder).encode(texts, show_progress_bar=False)


@functools.lru_cache(maxsize=1)  # as for wordllama
def _bert(folder: str) -> sentence_encoder.SentenceEncoder:
  return sentence_encoder.SentenceEncoder(folder)


@functools.lru_cache(maxsize=1)
def _sentence_model(folder: str) -> Any:
  """A model of a folder, kept until another one is asked for. Raises ImportError."""
  try:
    from sentence_transformers import SentenceTransformer
  except ImportError as error:
    raise ImportError(
      "sentence_transformers is missing: pip install sentence-transformers"
    ) from error
  # A folder of the user's: nothing is downloaded.
  return SentenceTransformer(folder, local_files_only=True)


def _numpy_file(path: str) -> np.ndarray:
  """A .npy file, mapped: its rows are read when asked for."""
  # Never a pickle: to read one is to run what is in it.
  try:
    return np.load(path, mmap_mode="r", allow_pickle=False)
  except ValueError as error:
    raise schema.DataError(f"{path}: not a plain .npy array ({error})") from error


def _parquet_file(path: str, ads: schema.AdTable) -> np.ndarray:
  """[N, D] float32 vectors of a .parquet file, in the order of the ads."""
  try:
    import pyarrow.parquet as pq
  except ImportError as error:
    raise ImportError("pyarrow is missing: pip install 'gr4ad_jax[data]'") from error
  table = pq.read_table(path)
  if "vector" not in table.column_names:
    raise schema.DataError(f"{path}: no column 'vector' (it has {', '.join(table.column_names)})")
  rows = table.column("vector").to_pylist()
  # Checked row by row: NumPy would only say that the rows are ragged, not which one is.
  width = len(rows[0]) if rows and rows[0] is not None else 0
  for row, vector in enumerate(rows):
    if vector is None or len(vector) != width or None in vector:
      raise schema.DataError(f"{path}, column vector, row {row + 1}: {width} numbers are needed")
  vectors_ND = np.asarray(rows, np.float32)
  if "ad_id" not in table.column_names:
    return vectors_ND
  # As text on both sides: a file may hold ids as whole numbers. Vectors of other ads are left.
  row_of = {str(ad): row for row, ad in enumerate(table.column("ad_id").to_pylist())}
  missing = [str(ad) for ad in ads.ad_id if str(ad) not in row_of]
  if missing:
    raise schema.DataError(
      f"{path}, column ad_id: no vector for ad {missing[0]} ({len(missing)} ads lack one)"
    )
  return vectors_ND[[row_of[str(ad)] for ad in ads.ad_id]]
