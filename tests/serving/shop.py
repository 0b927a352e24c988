"""A small catalogue with an encoder that needs no training, and, run as a program, a writer that is
killed by a test.

`python -m tests.serving.shop FOLDER LOG SEED` changes ads of the folder from several threads,
compacts and merges beside, and writes a line to the log before and after each change, until it is
killed.
"""

import os
import random
import sys
import threading
import zlib

import numpy as np

from gr4ad_jax.catalogue.catalog import AdCatalog
from gr4ad_jax.data.schema import AdTable

BOOKS = (4, 3, 8)
WRITERS = 3
NEW = {"text": "a red mug", "account_id": "shop"}


class Encoder:
  """UA-SIDs from a checksum of the text; the last code is the first free one."""

  codebooks = BOOKS

  def __init__(self):
    self.calls = 0

  def encode(self, ads, existing):
    self.calls += 1
    codes = []
    for text in ads.text:
      number = zlib.crc32(str(text).encode())
      prefix = (number % BOOKS[0], number // 7 % BOOKS[1])
      codes.append((*prefix, min(set(range(BOOKS[2])) - set(existing(prefix)), default=0)))
    return np.array(codes, np.int32)


def table(count: int = 6) -> AdTable:
  """The ads base0, base1, …"""
  words = {name: np.full(count, "") for name in ("category", "conversion_type", "form")}
  row = np.arange(count)
  return AdTable(
    ad_id=np.array([f"base{n}" for n in row]), text=np.array([f"thing {n}" for n in row]),
    account_id=np.array(["shop"] * count), price=row.astype(np.float32), created=np.full(count, -1),
    **words,
  )  # fmt: skip


def codes(count: int = 6) -> np.ndarray:
  """Their UA-SIDs."""
  return np.stack([np.arange(count) % size for size in BOOKS], axis=1).astype(np.int32)


def opened(folder, encoder=None, overlay: int = 16) -> AdCatalog:
  """The catalogue of a folder."""
  return AdCatalog.open(str(folder), table(), codes(), encoder or Encoder(), overlay=overlay)


def base_model() -> dict[str, tuple[str, float | None, str]]:
  """{ad id: (text, price, status)} of the untouched catalogue."""
  ads = table()
  return {str(ad): (str(ads.text[n]), float(n), "active") for n, ad in enumerate(ads.ad_id)}


def check(catalog: AdCatalog, model: dict[str, tuple[str, float | None, str]]) -> None:
  """The catalogue against {ad id: (text, price, status)}, which lacks removed ads."""
  for ad_id, entry in model.items():
    ad, row = catalog.get(ad_id), catalog.row(ad_id)
    assert (ad["text"], ad["price"], ad["status"]) == entry
    assert ad["codes"] == catalog.codes_NT[row].tolist()
    np.testing.assert_equal(catalog.price_N[row], np.nan if entry[1] is None else entry[1])
    assert (
      (row in catalog.index.rows_of(ad["codes"]))
      == (entry[2] == "active")
      == catalog.is_active(row)
    )
  assert catalog.index.num_active == sum(status == "active" for _, _, status in model.values())
  assert len(catalog) == len(catalog.codes_NT) == len(catalog.price_N)


def files_with(folder, word: str) -> list[str]:
  """Files of a folder that hold a word."""
  return [path.name for path in folder.iterdir() if word.encode() in path.read_bytes()]


def _change_for_ever(catalog: AdCatalog, log: int, writer: int, rng: random.Random) -> None:
  while True:
    ad_id = rng.choice((f"base{writer}", *(f"ad{writer}-{n}" for n in range(25))))
    value = "removed" if rng.random() < 0.3 else str(rng.randrange(1 << 20))
    os.write(log, f"begin {ad_id} {value}\n".encode())
    if value == "removed":
      catalog.delete(ad_id)
    else:
      status = "paused" if int(value) % 5 == 0 else "active"
      catalog.put(
        ad_id, {"text": f"thing {value}", "account_id": "s", "price": int(value), "status": status}
      )
    os.write(log, f"done {ad_id} {value}\n".encode())


def _write(folder: str, path: str, seed: int) -> None:
  log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
  catalog = opened(folder)
  for writer in range(WRITERS):
    arguments = (catalog, log, writer, random.Random(seed * WRITERS + writer))
    threading.Thread(target=_change_for_ever, args=arguments, daemon=True).start()
  while True:
    catalog.compact()
    catalog.index.merge()


if __name__ == "__main__":
  _write(sys.argv[1], sys.argv[2], int(sys.argv[3]))
