"""What an event may take back: one rule for log files, posted events and histories of requests.

An event of the deepest behaviour with a value below 0 takes back, such as a purchase that was
returned. Only such an event may have a quantity below 0.
"""

from collections.abc import Sequence


def value_problem(behaviors: Sequence[str]) -> str:
  """What is wrong where `is_wrong_value` is true."""
  return f"is negative, and only a {behaviors[-1]} can be taken back"


QUANTITY_PROBLEM = "is negative, and nothing is taken back: the value is not below 0"


def is_wrong_value(value, depth, behaviors: Sequence[str]):
  """Whether something is given back that was never paid, as for a click.

  Args:
    value: money, a number or an array.
    depth: of the behaviour, of the same shape; 0 is the shallowest.
    behaviors: their names, shallowest first.
  """
  return (value < 0) & (depth < len(behaviors) - 1)


def is_wrong_quantity(value, quantity):
  """Whether units are below 0 where nothing is taken back; numbers, or arrays of one shape."""
  return (quantity < 0) & (value >= 0)
