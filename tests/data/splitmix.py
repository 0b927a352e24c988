"""SplitMix64's finaliser in Python's whole numbers, cut to 64 bits."""

GOLDEN = 0x9E3779B97F4A7C15
BITS = (1 << 64) - 1


def splitmix(x):
  """The hash of a counter."""
  x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & BITS
  x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & BITS
  return x ^ (x >> 31)
