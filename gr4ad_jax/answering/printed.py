"""Texts and ids of unknown origin in a terminal: in one line, without control characters, as
wide as there is room.
"""

import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Sequence

from gr4ad_jax.answering.recommender import Recommendation

NEW = "new to the user"
AGAIN = "taken before"
_JOINERS = "\u200c\u200d"  # within words of some scripts, and within emoji


def terminal_width() -> int:
  """Columns of the terminal, or what COLUMNS says; 120 where standard output is a file."""
  return shutil.get_terminal_size((120, 24)).columns


def plain(text: str, width: int | None = None) -> str:
  """A text that a terminal shows as it is.

  Control characters, escape sequences, and marks that turn the direction of what follows become
  escapes such as `\\x1b`; so does what the output's encoding lacks.

  Args:
    text: any text.
    width: columns at most, 1 or more; a text that was cut ends in `…`. None: the whole text.
  """
  if width is not None:
    # A text may be megabytes long; what is shown is a line.
    # Enough for what is shown, also where marks without a width are among it.
    text = text[: 4 * width + 4]
  encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
  # The encoding may lack letters: `backslashreplace` writes these as escapes, and the way back
  # gives text again.
  safe = "".join(map(_shown, text)).encode(encoding, "backslashreplace").decode(encoding)
  if width is None or columns(safe) <= width:
    return safe
  # One column is kept for the mark that something was cut off.
  room = width - 1
  kept = []
  for letter in safe:
    room -= _columns(letter)
    if room < 0:
      break
    kept.append(letter)
  return "".join(kept) + "…".encode(encoding, "replace").decode(encoding)


def ad_name(ad_id: str, text: str, width: int | None = None) -> str:
  """An ad by its id and, where it has one, its text."""
  return plain(f"{ad_id} {text}" if text else ad_id, width)


def columns(text: str) -> int:
  """Columns that a text of `plain` takes."""
  return sum(map(_columns, text))


def ranked_list(found: Sequence[Recommendation], width: int) -> str:
  """A ranked list as aligned lines of at most `width` columns: ids keep a good third of them,
  texts the rest. What is new to the user stands first, then what was taken before, each ad with
  its rank in the whole list.
  """
  names = [plain(ad.ad_id, max(width // 2 - 8, 8)) for ad in found]
  room = max([len("ad_id"), *map(columns, names)])
  lines = [f"{'':>3}  {'ad_id':<{room}} {'log p':>7} {'score':>7} {'eCPM':>8}  text"]
  # Ranks are of the whole list, so they are counted before it is cut into the two groups.
  ranked = list(enumerate(zip(names, found, strict=True), 1))
  for title, seen in ((NEW, False), (AGAIN, True)):
    group = [entry for entry in ranked if entry[1][1].seen == seen]
    lines += [title] if group else []
    for rank, (name, ad) in group:
      numbers = f"{ad.log_p:>7.3f} {ad.score:>7.3f} {ad.ecpm:>8.2f}"
      figures = f"{rank:>3}  {name}{' ' * (room - columns(name))} {numbers}"
      left = max(width - columns(figures) - 2, 8)
      lines.append(f"{figures}  {plain(ad.text, left)}")
  return "\n".join(lines)


def reasons(found: Sequence[Recommendation], width: int) -> str:
  """Why each ad is in the list, for ads with `reasons`: in words, then what the slots that matter
  most carry, the codes, and the parts of the value. Lines are at most `width` columns wide.
  """
  lines = []
  for rank, ad in enumerate(found, 1):
    why = ad.reasons or {}
    lines.append(plain(f"{rank:>3}  {ad_name(ad.ad_id, ad.text)}", width))
    lines += _indented(plain(why["sentence"]), width)
    for slot in why["slots"]:
      figures = f"     {slot['log_p']:>+8.3f} log p {slot['ecpm']:>+9.2f} eCPM  {slot['kind']:<8}  "
      lines.append(figures + ad_name(slot["ad_id"], slot["text"], max(width - len(figures), 8)))
    codes = ", ".join(
      f"{code['code']} ({code['log_p']:+.2f}, of it {code['lift']:+.2f} by the context)"
      for code in why["codes"]
    )
    value = why["value"]
    money = (
      f"value: {value['expected']:.2f} if taken (8 of 10 between {value['low']:.2f} and "
      f"{value['high']:.2f}), with a chance of {value['chance']:.2%}"
    )
    lines += _indented(f"codes: {codes}", width) + _indented(money, width)
  return "\n".join(lines)


def _indented(text: str, width: int) -> list[str]:
  # At least 20 columns, however narrow the terminal is.
  return textwrap.wrap(text, max(width, 20), initial_indent=" " * 5, subsequent_indent=" " * 7)


def _shown(letter: str) -> str:
  if letter.isprintable() or letter in _JOINERS:
    return letter
  if unicodedata.category(letter) == "Zs":
    return " "
  return letter.encode("unicode_escape").decode()


def _columns(letter: str) -> int:
  # Marks stand on the letter before them.
  if unicodedata.combining(letter) or unicodedata.category(letter) in ("Mn", "Me", "Cf"):
    return 0
  # Wide letters, such as those of Chinese, take two columns.
  return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
