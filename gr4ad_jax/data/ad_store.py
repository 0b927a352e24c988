"""An ad table on disk inside a run: one npz, text as UTF-8 bytes with offsets, no pickle."""

import os

import numpy as np

from gr4ad_jax.data.schema import AdTable

_TEXT = ("ad_id", "text", "account_id", "category", "conversion_type", "form")
_FILE = "ads.npz"


def save_ads(ads: AdTable, directory: str) -> None:
  """Writes `ads.npz`."""
  os.makedirs(directory, exist_ok=True)
  arrays = {}
  for name in _TEXT:
    encoded = [str(text).encode() for text in getattr(ads, name)]
    arrays[name] = np.frombuffer(b"".join(encoded), np.uint8)
    arrays[name + "_end"] = np.cumsum([len(text) for text in encoded], dtype=np.int64)
  arrays |= {"price": ads.price, "created": ads.created}
  part = os.path.join(directory, "ads.part.npz")
  np.savez_compressed(part, **arrays)
  os.replace(part, os.path.join(directory, _FILE))


def load_ads(directory: str) -> AdTable:
  """Reads what `save_ads` wrote; content vectors are not kept. Raises FileNotFoundError where there is none."""
  with np.load(os.path.join(directory, _FILE), allow_pickle=False) as saved:
    columns = {name: saved[name] for name in ("price", "created")}
    for name in _TEXT:
      end = saved[name + "_end"]
      start = np.append(0, end[:-1])
      blob = saved[name].tobytes()
      columns[name] = np.array([blob[a:b].decode() for a, b in zip(start, end, strict=True)], dtype=str)
  return AdTable(**columns)


def same_ads(one: AdTable, other: AdTable) -> bool:
  """Whether two tables list the same ads, with the same content (vectors aside), in the same order."""
  same = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in (*_TEXT, "created"))
  return same and np.array_equal(one.price, other.price, equal_nan=True)
