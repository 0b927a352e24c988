"""Files that appear whole: written under another name, then renamed."""

import os
from collections.abc import Callable


def assert_replaced_whole(
  path: str, write: Callable[[], None], write_again: Callable[[], None]
) -> None:
  """Writes a file twice, the second time something else, while a reader still holds the first.

  A file that is written in place changes under its reader; one that is renamed leaves the reader
  what it had.

  Args:
    path: the file that both calls write.
    write: writes it, in a folder that holds nothing else.
    write_again: writes other content to the same path.
  """
  write()
  beside = sorted(os.listdir(os.path.dirname(path)))
  with open(path, "rb") as reader:
    before = reader.read()
    write_again()
    reader.seek(0)
    assert reader.read() == before, f"{path} was written in place"
  with open(path, "rb") as reader:
    assert reader.read() != before, f"{path} is the old one"
  assert sorted(os.listdir(os.path.dirname(path))) == beside, "a temporary file is left"
