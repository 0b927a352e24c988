"""Durations, and checks of them, that a pause of the machine does not reach."""

import time


def quickest(call, tries=3):
  """Seconds of the fastest of some calls: a pause is in one of them."""
  found = []
  for _ in range(tries):
    begin = time.monotonic()
    call()
    found.append(time.monotonic() - begin)
  return min(found)


def undisturbed(check, tries=3):
  """What a check returns, at the first of some tries that passes; raises what the last one does."""
  for _ in range(tries - 1):
    try:
      return check()
    except (AssertionError, RuntimeError):  # a pause is in one of them; what is wrong is in all
      pass
  return check()
