"""One ad as the catalogue keeps it: fields that a request may set, checked, and their form on
disk.
"""

import base64
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gr4ad_jax.data.forms import TEMPLATES
from gr4ad_jax.data.schema import AdTable, DataError
from gr4ad_jax.reading.checks import LONGEST_ID, MAX_NUMBER
from gr4ad_jax.reading.times import MAX_TIME

ACTIVE = "active"
PAUSED = "paused"
REMOVED = "removed"
WORDS = ("text", "account_id", "category", "conversion_type", "form")
FIELDS = (*WORDS, "price", "created", "vector", "status")
MAX_TEXT = 20_000  # characters
MAX_WIDTH = 65_536  # numbers


@dataclasses.dataclass(frozen=True)
class AdRecord:
  """An ad.

  Attributes:
    ad_id: its id.
    text, account_id, category, conversion_type, form: as in `AdTable`, "" where unknown.
    price: money; None where unknown.
    vector: content vector, little-endian float32 bytes; None where an encoder makes it.
    status: 'active', 'paused' or 'removed'.
    content: of a removed ad, the `fingerprint` that it had; "" for others.
    created: unix seconds; None where unknown, as of ads from before it was kept.
  """

  ad_id: str
  text: str = ""
  account_id: str = ""
  category: str = ""
  conversion_type: str = ""
  form: str = ""
  price: float | None = None
  vector: bytes | None = None
  status: str = ACTIVE
  content: str = ""
  created: int | None = None

  @classmethod
  def of_row(cls, ads: AdTable, row: int) -> "AdRecord":
    """The ad of a table's row, active."""
    words = {name: str(getattr(ads, name)[row]) for name in ("ad_id", *WORDS)}
    price = None if np.isnan(ads.price[row]) else _short(ads.price[row])
    created = int(ads.created[row])
    # The table has -1 where a date is unknown, and a record has none.
    return cls(**words, price=price, created=created if created >= 0 else None)

  @classmethod
  def made(
    cls,
    ad_id: str,
    fields: Mapping[str, Any],
    before: "AdRecord | None" = None,
    now: int | None = None,
  ) -> "AdRecord":
    """An ad with the given fields, the others as before.

    Args:
      ad_id: its id.
      fields: any of `FIELDS`; price, created and vector may be None.
      before: the ad as it is; None for a new one, which needs text and account_id.
      now: unix seconds: when a new ad was created that does not say so itself.

    Raises:
      DataError: an id or a field that is not allowed; names field and value.
    """
    if before is None:
      _check_id(ad_id)
      # A new ad needs what UA-SIDs and answers are made of.
      if missing := [name for name in ("text", "account_id") if name not in fields]:
        raise DataError(
          f"ad {ad_id!r}: {missing[0]} is missing; a new ad needs text and account_id"
        )
    if unknown := sorted(set(fields) - set(FIELDS)):
      raise DataError(
        f"ad {ad_id!r}: field {unknown[0]!r} is not known; allowed: {', '.join(FIELDS)}"
      )
    # Checked one by one, so that nothing of a change is taken where a part of it is wrong.
    given = {name: _checked(ad_id, name, value) for name, value in fields.items()}
    return dataclasses.replace(before or cls(ad_id, created=now), **given)

  def removed(self) -> "AdRecord":
    """The ad without words and vector. Price and date stay: lines of users' histories read them."""
    kept = {"price": self.price, "created": self.created}
    return AdRecord(self.ad_id, status=REMOVED, content=self.fingerprint(), **kept)

  def fingerprint(self) -> str:
    """SHA-256 of all that the tokenizer reads: equal for ads of the same UA-SID."""
    # A fixed order, so that equal ads have equal bytes.
    read = [getattr(self, name) for name in WORDS] + [self.price]
    made = hashlib.sha256(json.dumps(read).encode() + b"\0" + (self.vector or b""))
    # A removed ad has lost its words, and keeps the digest that it had.
    return self.content or made.hexdigest()

  def table(self) -> AdTable:
    """An ad table of this ad alone."""
    words = {name: np.array([getattr(self, name)], object) for name in ("ad_id", *WORDS)}
    price = np.array([np.nan if self.price is None else self.price], np.float32)
    vectors = None if self.vector is None else np.frombuffer(self.vector, "<f4")[None]
    created = np.array([-1 if self.created is None else self.created], np.int64)
    return AdTable(**words, price=price, created=created, vectors=vectors)

  def encoded(self, row: int, codes: Sequence[int]) -> bytes:
    """The ad with its row and UA-SID as JSON."""
    # Empty fields are left out: most ads have few of them.
    fields = dataclasses.asdict(self) | {"row": int(row), "codes": [int(code) for code in codes]}
    if self.vector is not None:
      fields["vector"] = base64.b64encode(self.vector).decode()
    return json.dumps(
      {name: value for name, value in fields.items() if value not in ("", None)}
    ).encode()

  @classmethod
  def decoded(cls, payload: bytes) -> tuple["AdRecord", int, tuple[int, ...]]:
    """What `encoded` wrote: the ad, its row, its UA-SID."""
    fields = json.loads(payload)
    row = fields.pop("row")
    codes = tuple(fields.pop("codes"))
    if "vector" in fields:
      fields["vector"] = base64.b64decode(fields["vector"])
    return cls(**fields), row, codes


def check_codes(ad_id: str, codes: Sequence[int], codebooks: Sequence[int]) -> None:
  """Raises DataError where a UA-SID that comes with an ad is none of these codebooks."""
  # The lengths are compared below; here only what both have is looked at.
  inside = all(0 <= code < size for code, size in zip(codes, codebooks, strict=False))
  if len(codes) != len(codebooks) or not inside:
    raise DataError(f"ad {ad_id!r}: codes {_shown(list(codes))} are not of {list(codebooks)}")


def _check_id(ad_id: Any) -> None:
  if (
    not isinstance(ad_id, str)
    or not ad_id.strip()
    or len(ad_id) > LONGEST_ID
    or "\0" in ad_id
    or not _is_utf8(ad_id)
  ):
    raise DataError(f"ad id {_shown(ad_id)} is not allowed: text of 1 to {LONGEST_ID} characters")


def _checked(ad_id: str, name: str, value: Any) -> Any:
  """A field's value as it is kept."""
  if name == "price":
    good = value is None or (
      isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= MAX_NUMBER
    )
    kept = None if value is None or not good else _short(value)
    wanted = "a number, at least 0"
  elif name == "created":
    good = value is None or (
      isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_TIME
    )
    kept = value
    wanted = "unix seconds, a whole number from 1970 to 2099"
  elif name == "vector":
    kept = None if value is None else _packed(value)
    good = value is None or kept is not None
    wanted = f"1 to {MAX_WIDTH} finite numbers"
  elif name == "status":
    kept = value
    good = value in (ACTIVE, PAUSED)
    wanted = f"{ACTIVE!r} or {PAUSED!r}"
  else:
    good = isinstance(value, str) and len(value) <= MAX_TEXT and _is_utf8(value)
    # Runs of white space become one space, as in a file of ads.
    kept = " ".join(value.split()) if good else ""
    wanted = f"text of at most {MAX_TEXT} characters"
    if name in ("text", "account_id"):
      good = bool(kept)
      wanted = f"text of 1 to {MAX_TEXT} characters"
    if name == "form" and kept and kept not in TEMPLATES:
      good = False
      wanted = f"one of {', '.join(TEMPLATES)}, or empty"
  if not good:
    raise DataError(f"ad {ad_id!r}: {name} {_shown(value)} is not allowed: {wanted}")
  return kept


def _short(price: float) -> float:
  """A price as float32 holds it, in as few digits as tell it: 0.85, not 0.8500000238418579."""
  # `str` of a float32 is its shortest form.
  return float(str(np.float32(price)))


def _packed(value: Any) -> bytes | None:
  """A vector as float32 bytes; None for what is none."""
  try:
    vector = np.asarray(value, np.float64)
  except (TypeError, ValueError, OverflowError):
    return None
  # False for NaN.
  fits = vector.ndim == 1 and 0 < len(vector) <= MAX_WIDTH and (np.abs(vector) <= MAX_NUMBER).all()
  return vector.astype("<f4").tobytes() if fits else None


def _is_utf8(text: str) -> bool:
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def _shown(value: Any) -> str:
  shown = repr(value)
  return shown[:80] + "…" if len(shown) > 80 else shown
