"""A record of the topic `lists`: the candidates of a request that was answered, with rewards.

`live/proposer` writes them; docs/reference/streams.md has their fields.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gr4ad_jax.data.schema import DataError
from gr4ad_jax.objectives.lists import MOST_REWARD
from gr4ad_jax.reading.times import MAX_TIME
from gr4ad_jax.requests.candidates import NO_REFERENCE


class RewardedList(NamedTuple):
  """A list of C candidates, in the order of the record.

  Attributes:
    user_id: whose request it was.
    began: unix seconds at which the visit began that followed the answer.
    ads: ids of the candidates, none twice.
    codes_CT: int32, the UA-SIDs that they had when the list was made.
    reward_C: float32.
    reference_logp_C: float32, NO_REFERENCE where no search proposed the candidate.
  """

  user_id: str
  began: int
  ads: tuple[str, ...]
  codes_CT: np.ndarray
  reward_C: np.ndarray
  reference_logp_C: np.ndarray


def parse(value: Mapping[str, Any], codebooks: Sequence[int]) -> RewardedList:
  """A list from its record; a stream may have been written by anybody.

  Args:
    value: of the record.
    codebooks: codes of each level of a UA-SID.

  Raises:
    DataError: a field that is missing or not allowed.
  """
  user_id = value.get("user")
  if not isinstance(user_id, str):
    raise DataError(f"user {user_id!r} is not allowed: text")
  began = int(_number(value, "began", 0, MAX_TIME))
  entries = value.get("list")
  if not isinstance(entries, list) or not entries:
    raise DataError("list is not allowed: some candidates are needed")
  if not all(isinstance(entry, Mapping) for entry in entries):
    raise DataError("list is not allowed: each candidate is an object")
  ads = tuple(entry.get("ad") for entry in entries)
  if not all(isinstance(ad, str) for ad in ads) or len(set(ads)) < len(ads):
    raise DataError("list is not allowed: each candidate has an ad of its own")
  codes_CT = [_codes(entry, codebooks) for entry in entries]
  rewards = [_number(entry, "reward", -MOST_REWARD, MOST_REWARD) for entry in entries]
  # A log p is at most 0, up to rounding.
  logps = [
    NO_REFERENCE if entry.get("log_p") is None else _number(entry, "log_p", NO_REFERENCE, 1.0)
    for entry in entries
  ]
  columns = np.array(codes_CT, np.int32), np.array(rewards, np.float32), np.array(logps, np.float32)
  return RewardedList(user_id, began, ads, *columns)


def _codes(entry: Mapping[str, Any], codebooks: Sequence[int]) -> list[int]:
  codes = entry.get("codes")
  known = isinstance(codes, list) and len(codes) == len(codebooks)
  # A bool is an int to Python.
  if not known or not all(
    type(code) is int and 0 <= code < size for code, size in zip(codes, codebooks, strict=True)
  ):
    raise DataError(f"codes {codes!r} are not allowed: a code of each of {len(codebooks)} levels")
  return codes


def _number(value: Mapping[str, Any], field: str, low: float, high: float) -> float:
  """A field that is a number. NaN is in no range, and refused by the comparison."""
  found = value.get(field)
  if isinstance(found, bool) or not isinstance(found, (int, float)) or not low <= found <= high:
    raise DataError(f"{field} {found!r} is not allowed: a number, {low:g} to {high:g}")
  return float(found)
