"""Which arm a user is in: by a hash of the user's id, so that no table has to be kept.

The place of a user on [0, 1) depends on the salt and the id alone. Arms lie side by side on that
line, each as long as its share. A user so stays in an arm as long as salt and shares stay, on every
server and after every restart. Another salt shuffles all users anew.
"""

import hashlib
import math
from collections.abc import Mapping

from gr4ad_jax.knobs import ConfigError

_PLACES = 1 << 64  # of a 64-bit hash


def place(user: str, salt: str) -> float:
  """Where a user stands on [0, 1).

  Args:
    user: its id.
    salt: of the experiment.
  """
  # The length keeps salt and id apart: ('a', 'bc') is not ('ab', 'c').
  text = f"{len(salt)}:{salt}{user}".encode("utf-8", "surrogatepass")
  number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
  # 53 bits are what a float holds; more would be rounded, and the largest up to 1.
  return (number >> 11) / (_PLACES >> 11)


def arm_of(user: str, shares: Mapping[str, float], salt: str) -> str:
  """The arm of a user.

  Args:
    user: its id.
    shares: arm -> share, in the order of the line; they sum to 1.
    salt: of the experiment.
  """
  at = place(user, salt)
  end = 0.0
  for name, share in shares.items():
    end += share
    if at < end:
      return name
  # The shares sum to 1 but for rounding, so a place at the very end is the last arm's.
  return name


def parse_shares(text: str) -> dict[str, float]:
  """Arm -> share, from `frozen=0.5,learning=0.5`. Raises ConfigError."""
  shares: dict[str, float] = {}
  for part in text.split(","):
    name, _, share = part.partition("=")
    name = name.strip()
    if name in shares:
      raise ConfigError(f"--arms={text} is not allowed: {name!r} stands there twice")
    try:
      shares[name] = float(share)
    except ValueError as error:
      raise ConfigError(f"--arms={text} is not allowed: frozen=0.5,learning=0.5") from error
  check_shares(shares, f"--arms={text}")
  return shares


def check_shares(shares: Mapping[str, float], what: str = "arms") -> None:
  """Raises ConfigError where shares of arms are not allowed.

  Args:
    shares: arm -> share.
    what: names the flag or file, for the message.
  """
  if not shares:
    raise ConfigError(f"{what}: there is no arm")
  for name, share in shares.items():
    if not name or len(name) > 64 or not all(c.isalnum() or c in "_-." for c in name):
      raise ConfigError(f"{what}: arm {name[:64]!r} is not allowed: letters, digits, '_', '-', '.'")
    if not 0 < share <= 1:
      raise ConfigError(f"{what}: share {share} of arm {name} is not allowed: above 0, at most 1")
  if not math.isclose(sum(shares.values()), 1.0, abs_tol=1e-9):
    raise ConfigError(f"{what}: shares sum to {sum(shares.values()):.6g}, not to 1")
