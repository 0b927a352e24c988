"""One pass over the bytes of a CSV file, by blocks: where rows end, whether quotes are in order.

Quotes are numbered over the file. One with an even number opens a field, or goes on after its
doubled twin; one with an odd number closes it, or is the first of two. So with each its neighbour
byte says whether it may stand there, and a line break with an odd number of quotes before it lies
within a field.
"""

import codecs
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

COMMA, QUOTE, LF, CR = b',"\n\r'
BLOCK = 1 << 20  # bytes looked at together


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a row may begin: right after a line break that ends one, or at the file's start.

  Attributes:
    at: number of its first byte.
    row: rows before it, the header counted.
    line: its line, from 1.
  """

  at: int
  row: int
  line: int


@dataclasses.dataclass(frozen=True)
class Block:
  """What some bytes tell.

  Attributes:
    place: the last one before the block: a fault within the block lies there or later.
    is_sound: whether the bytes are UTF-8 without NUL, and each quote stands where one may. What
      else is said of a block that is not sound means nothing, and no other follows.
    end_R: where rows end in it, numbers of bytes, ascending.
    commas_R: commas outside of quotes in each of these rows.
    longest: bytes of the longest row that ends in the block or goes on after it, or more.
    has_breaks: whether a quoted field runs over a line.
  """

  place: Place
  is_sound: bool
  end_R: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
  commas_R: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
  longest: int = 0
  has_breaks: bool = False


def blocks(path: str) -> Iterator[Block]:
  """The blocks of a file, up to the first that is not sound.

  A file that ends within a quoted field ends in a block that is not sound. The last row ends at the
  file's end where no line break stands there.
  """
  # Incremental: a letter may lie across the end of a block.
  decoder = codecs.getincrementaldecoder("utf-8")()
  with open(path, "rb") as file:
    marked = file.read(3) == codecs.BOM_UTF8
    file.seek(3 if marked else 0)
    start = 2 if marked else -1  # number of the byte `bytes_X` begins with
    place = Place(start + 1, 0, 1)
    # Quotes and line ends so far, and commas of the row that is not over.
    quotes = 0
    lines = 0
    commas = 0
    kept = bytes([LF])  # a line break is thought before the first byte
    while True:
      block = file.read(BLOCK)
      try:
        decoder.decode(block, final=not block)
      except UnicodeDecodeError:
        yield Block(place, is_sound=False)
        return
      # The first byte was looked at and is a neighbour only; the last one waits for its own. At the
      # end of the file a line break is thought.
      bytes_X = np.frombuffer(kept + (block or bytes([LF])), np.uint8)
      middle = bytes_X[1:-1]
      quote_Q = np.flatnonzero(middle == QUOTE) + 1
      never_closes = not block and (quotes + len(quote_Q)) % 2 == 1
      if never_closes or not middle.all() or not _stand_right(bytes_X, quote_Q, quotes):
        yield Block(place, is_sound=False)
        return
      break_L = np.flatnonzero(_is_break(middle)) + 1
      is_outside_L = _are_outside(break_L, quote_Q, quotes)
      outside_L = break_L[is_outside_L]
      end_R = _row_ends(bytes_X, outside_L, is_last=not block)
      comma_C = np.flatnonzero(middle == COMMA) + 1
      comma_C = comma_C[_are_outside(comma_C, quote_Q, quotes)]
      before_R = np.searchsorted(comma_C, end_R)
      at_L = np.concatenate([[place.at - 1 - start], outside_L, [len(bytes_X)]])
      yield Block(
        place,
        is_sound=True,
        end_R=end_R + start,
        commas_R=np.diff(before_R, prepend=-commas),
        longest=int(np.diff(at_L).max()),
        has_breaks=not is_outside_L.all(),
      )
      if not block:
        return
      # Of CR LF the second byte ends the line.
      ends_line_L = (bytes_X[break_L] == LF) | (bytes_X[break_L + 1] != LF)
      place = _after(place, start, len(end_R), lines, break_L, outside_L, ends_line_L)
      commas = len(comma_C) - int(before_R[-1]) if len(end_R) else commas + len(comma_C)
      quotes += len(quote_Q)
      lines += int(np.count_nonzero(ends_line_L))
      start += len(bytes_X) - 2
      kept = bytes_X[-2:].tobytes()


def _row_ends(bytes_X: np.ndarray, outside_L: np.ndarray, is_last: bool) -> np.ndarray:
  """Where rows end, of the line breaks outside of quotes."""
  # A break right after another one ends no row: the second byte of CR LF, or a blank line.
  end_R = outside_L[~_is_break(bytes_X[outside_L - 1])]
  # Without a break at the file's end, the last row ends at the one that is thought there.
  if is_last and not _is_break(bytes_X[-2]):
    end_R = np.append(end_R, len(bytes_X) - 1)
  return end_R


def _after(
  place: Place,
  start: int,
  rows: int,
  lines: int,
  break_L: np.ndarray,
  outside_L: np.ndarray,
  ends_line_L: np.ndarray,
) -> Place:
  """The last place before the next block: behind the last line break outside of quotes, if any."""
  if not len(outside_L):
    return place
  last = outside_L[-1]
  at_last = lines + int(np.count_nonzero(ends_line_L[: np.searchsorted(break_L, last) + 1]))
  return Place(int(last) + start + 1, place.row + rows, 1 + at_last)


def _is_break(byte: Any) -> Any:
  return (byte == LF) | (byte == CR)


def _are_outside(at_X: np.ndarray, quote_Q: np.ndarray, before: int) -> np.ndarray:
  """Whether bytes lie outside of quoted fields, bool; `before` quotes stand before the block."""
  return (np.searchsorted(quote_Q, at_X) + before) % 2 == 0


def _stand_right(bytes_X: np.ndarray, quote_Q: np.ndarray, before: int) -> bool:
  """Whether each quote has a neighbour that lets it stand there; `before` quotes stand before
  the block.
  """
  # Quotes take turns; which of them opens depends on how many came before the block.
  opens = quote_Q[before % 2 :: 2]
  closes = quote_Q[1 - before % 2 :: 2]
  # What stands before an opening quote, and behind a closing one.
  beside = np.concatenate([bytes_X[opens - 1], bytes_X[closes + 1]])
  return bool(((beside == COMMA) | (beside == QUOTE) | _is_break(beside)).all())
