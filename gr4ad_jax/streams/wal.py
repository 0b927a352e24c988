"""SQLite's write-ahead log, looked at before SQLite opens it.

The *log* (`-wal`) is where SQLite writes changed pages first, each as a *frame*: a header with a
checksum, then the page. SQLite reads the log up to the first frame whose checksum is wrong, and
takes that for its end: after a crash it mostly is. A bit that flipped would so cut off all that
follows without a word. Two things tell the one from the other. The `-shm` file counts frames, and a
frame is counted only once it is synced. And a transaction that is followed by another was synced.

Formats: https://www.sqlite.org/fileformat2.html#walformat, https://www.sqlite.org/walformat.html
"""

import functools
import os
import struct
from typing import NamedTuple

import numpy as np

from gr4ad_jax.data.schema import DataError

# Bytes of the header of the log, and of the header before each page.
_HEAD = 32
_FRAME = 24
_MAGIC = 0x377F0682  # its lowest bit: whether checksums take words as big-endian


class _Published(NamedTuple):
  """What the `-shm` file says: the log's salts, frames that are synced, those in the database."""

  salts: bytes = b""
  frames: int = 0
  moved: int = 0


def check(path: str) -> None:
  """Raises DataError where the write-ahead log of a database lacks a frame that was acknowledged.

  Args:
    path: of the database. This process must not have it open: closing a file that SQLite has
      open too would drop SQLite's locks.
  """
  log = path + "-wal"
  known = _published(path + "-shm")
  content = b""
  if os.path.exists(log):
    with open(log, "rb") as file:
      content = file.read()
  if not content:
    if known.moved < known.frames:
      raise DataError(f"{log}: {known.frames} frames are missing that were acknowledged")
    return
  head = _header(content)
  # The header is synced before any frame is written; zeros are room that was never filled.
  whole, follows = _frames(content, *head) if head else (0, bool(content[_HEAD:].strip(b"\0")))
  # Other salts: the `-shm` file is of an older log, all of which is in the database.
  counted = 0 if head and known.salts != content[16:24] else known.frames
  if whole < counted or follows:
    raise DataError(f"{log}: frame {whole + 1} is damaged, and what follows it was acknowledged")


def _published(path: str) -> _Published:
  """What the `-shm` file says; nothing where it is missing or was not finished."""
  if not os.path.exists(path):
    return _Published()
  with open(path, "rb") as file:
    head = file.read(100)
  # The header stands there twice, written in turn. Where the two differ, a kill came between.
  if len(head) < 100 or head[:48] != head[48:96] or not head[12]:
    return _Published()
  # Numbers are in the byte order of the machine; salts are the log's own bytes.
  return _Published(head[32:40], *(int.from_bytes(head[at : at + 4], _native()) for at in (16, 96)))


def _native() -> str:
  """The machine's byte order, as `int.from_bytes` names it."""
  return "little" if np.little_endian else "big"


def _header(content: bytes) -> tuple[int, str] | None:
  """Bytes of a page, and the byte order that checksums take; None where the header is damaged."""
  if len(content) < _HEAD:
    return None
  # The header itself is big-endian always; only checksums follow the machine that wrote the log.
  magic, _, size, _, _, _, *sums = struct.unpack(">8I", content[:_HEAD])
  order = ">" if magic & 1 else "<"
  if magic & ~1 != _MAGIC or not 512 <= size <= 65536 or size & (size - 1):
    return None
  found_F2 = _sums(np.frombuffer(content, np.uint8, 24)[None], np.zeros((1, 2), np.uint32), order)
  return (size, order) if found_F2[0].tolist() == sums else None


def _frames(content: bytes, size: int, order: str) -> tuple[int, bool]:
  """Whole frames at the log's beginning, and whether a synced transaction lies behind them."""
  count = (len(content) - _HEAD) // (_FRAME + size)
  frame_FB = np.frombuffer(content, np.uint8, count * (_FRAME + size), _HEAD)
  frame_FB = frame_FB.reshape(count, _FRAME + size)
  head_F6 = np.ascontiguousarray(frame_FB[:, :_FRAME]).view(">u4").astype(np.uint32)
  # A frame's checksum goes on from the one before it, as that is written there. So each frame is
  # judged by itself, and one that is damaged hides only itself and its successor.
  before_F2 = np.concatenate(
    [np.array([struct.unpack(">2I", content[24:32])], np.uint32), head_F6[:, 4:]]
  )
  # A checksum covers the first 8 bytes of a frame's header and the page, not salts and sums.
  covered_FB = np.concatenate([frame_FB[:, :8], frame_FB[:, _FRAME:]], axis=1)
  good_F = (_sums(covered_FB, before_F2[:count], order) == head_F6[:, 4:]).all(1)
  # Frames of other salts are what an older log left behind: not of this one, however whole.
  salts = np.frombuffer(content[16:24], np.uint8)
  good_F &= (frame_FB[:, 8:16] == salts).all(1)
  if good_F.all():
    return count, False
  whole = int(np.argmin(good_F))
  later = whole + np.flatnonzero(good_F[whole:])
  # The last frame of a transaction tells the size of the database.
  ends = later[head_F6[later, 1] > 0]
  return whole, bool(len(ends) and later[-1] > ends[0])


def _sums(row_FB: np.ndarray, start_F2: np.ndarray, order: str) -> np.ndarray:
  """[F, 2] uint32, the log's checksums of rows of bytes, going on from `start_F2`."""
  # As a product of matrices: a loop over words would be slow in Python.
  word_FW = np.ascontiguousarray(row_FB).view(order + "u4").astype(np.uint32)
  start_22, word_W2 = _weights(word_FW.shape[1])
  # uint32 wraps around, as the format's checksum does.
  return start_F2 @ start_22 + word_FW @ word_W2


@functools.cache
def _weights(words: int) -> tuple[np.ndarray, np.ndarray]:
  """[2, 2] and [W, 2]: what the checksum takes of its start, and of each word.

  Its rule for a pair of words is s0 += x0 + s1, then s1 += x1 + s0, modulo 2^32. That is linear:
  s <- M s + B x with M = (1 1; 1 2) and B = (1 0; 1 1). The last pair counts B, the one before it
  M B.
  """
  step_22 = np.array([[1, 1], [1, 2]], np.uint32)
  pair_22 = np.array([[1, 0], [1, 1]], np.uint32)
  power_22 = np.eye(2, dtype=np.uint32)
  weight_P22 = []
  for _ in range(words // 2):
    # Rows: x0 and x1; columns: what s0 and s1 take of them.
    weight_P22.append((power_22 @ pair_22).T)
    power_22 = power_22 @ step_22
  return power_22.T, np.concatenate(weight_P22[::-1])
