"""Durations that a pause of the machine does not reach."""

import time


def quickest(call, tries=3):
  """Seconds of the fastest of some calls: a pause is in one of them."""
  found = []
  for _ in range(tries):
    begin = time.monotonic()
    call()
    found.append(time.monotonic() - begin)
  return min(found)
