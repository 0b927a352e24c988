"""An ad table on disk inside a run: one npz, text as UTF-8 bytes with offsets, no pickle."""

import os

import numpy as np

from gr4ad_jax import files
from gr4ad_jax.data.schema import AdTable

_TEXT = ("ad_id", "text", "account_id", "category", "conversion_type", "form")
_FILE = "ads.npz"


def save_ads(ads: AdTable, directory: str) -> None:
  """Writes `ads.npz`."""
  arrays = {}
  for name in _TEXT:
    encoded = [str(text).encode() for text in getattr(ads, name)]
    arrays[name] = np.frombuffer(b"".join(encoded), np.uint8)
    # A text begins where the one before it ends, so the ends, in bytes, are enough.
    arrays[name + "_end"] = np.cumsum([len(text) for text in encoded], dtype=np.int64)
  arrays |= {"price": ads.price, "created": ads.created}
  files.save_arrays(os.path.join(directory, _FILE), compressed=True, **arrays)


def load_ads(directory: str) -> AdTable:
  """Reads what `save_ads` wrote; content vectors are not kept. Raises as `files.load_arrays` does.

  Texts are Python strings in arrays of objects, equal ones shared: an array of NumPy's own strings
  would give every ad the length of the longest, at four bytes a character.
  """
  names = ("price", "created", *(part for name in _TEXT for part in (name, name + "_end")))
  saved = dict(zip(names, files.load_arrays(os.path.join(directory, _FILE), *names), strict=True))
  columns = {name: saved[name] for name in ("price", "created")}
  for name in _TEXT:
    columns[name] = _texts(saved[name].tobytes(), saved[name + "_end"])
  return AdTable(**columns)


def _texts(blob: bytes, end_N: np.ndarray) -> np.ndarray:
  """[N] str of one UTF-8 blob, objects; text n ends before byte end_N[n]."""
  shared: dict[str, str] = {}
  texts = np.empty(len(end_N), object)
  begin = 0
  for row, end in enumerate(end_N.tolist()):
    text = blob[begin:end].decode()
    texts[row] = shared.setdefault(text, text)
    begin = end
  return texts


def same_ads(one: AdTable, other: AdTable) -> bool:
  """Whether two tables list the same ads, with the same content (vectors aside), in the same
  order.
  """
  same = all(
    np.array_equal(getattr(one, name), getattr(other, name)) for name in (*_TEXT, "created")
  )
  return same and np.array_equal(one.price, other.price, equal_nan=True)
