"""A small catalogue with an encoder that needs no training, and, run as a program, a writer that is killed by a test.

`python -m tests.serving.shop FOLDER LOG SEED` changes ads of the folder from several threads, with snapshots and merges
beside, and writes a line to the log before and after each change, until it is killed.
"""

import os
import random
import sys
import threading
import zlib

import numpy as np

from gr4ad_jax.data.schema import AdTable
from gr4ad_jax.serving.catalog import AdCatalog

BOOKS = (4, 3, 8)
WRITERS = 3


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
    account_id=np.array(["shop"] * count), price=row.astype(np.float32), created=np.full(count, -1), **words,
  )  # fmt: skip


def codes(count: int = 6) -> np.ndarray:
  """Their UA-SIDs."""
  return np.stack([np.arange(count) % size for size in BOOKS], axis=1).astype(np.int32)


def opened(folder, encoder=None, overlay: int = 16) -> AdCatalog:
  """The catalogue of a folder."""
  return AdCatalog.open(str(folder), table(), codes(), encoder or Encoder(), overlay=overlay)


def _change_for_ever(catalog: AdCatalog, log: int, writer: int, rng: random.Random) -> None:
  while True:
    ad_id = rng.choice((f"base{writer}", *(f"ad{writer}-{n}" for n in range(25))))
    value = "removed" if rng.random() < 0.3 else str(rng.randrange(1 << 20))
    os.write(log, f"begin {ad_id} {value}\n".encode())
    if value == "removed":
      catalog.delete(ad_id)
    else:
      status = "paused" if int(value) % 5 == 0 else "active"
      catalog.put(ad_id, {"text": f"thing {value}", "account_id": "s", "price": int(value), "status": status})
    os.write(log, f"done {ad_id} {value}\n".encode())


def _write(folder: str, path: str, seed: int) -> None:
  log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
  catalog = opened(folder)
  for writer in range(WRITERS):
    arguments = (catalog, log, writer, random.Random(seed * WRITERS + writer))
    threading.Thread(target=_change_for_ever, args=arguments, daemon=True).start()
  while True:
    catalog.snapshot()
    catalog.index.merge()


if __name__ == "__main__":
  _write(sys.argv[1], sys.argv[2], int(sys.argv[3]))
