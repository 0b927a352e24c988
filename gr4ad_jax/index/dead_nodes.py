"""Nodes that a request's search must not enter, and nodes of which it lacks a part."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Dead:
  """Nodes that a request's search must not enter, n of them.

  Attributes:
    request_n: number of the request, ascending.
    parent_n: the main node of depth t that the dead one hangs under; -1 for a node of the overlay.
      Those of the main part ascend within a request: a search among them relies on it.
    child_n: the dead node, of depth t + 1.
  """

  request_n: np.ndarray
  parent_n: np.ndarray
  child_n: np.ndarray

  @classmethod
  def joined(cls, parts: Sequence["Dead"]) -> "Dead":
    """Several as one, in their order."""
    return cls(
      *(np.concatenate([getattr(part, f.name) for part in parts]) for f in dataclasses.fields(cls))
    )


@dataclasses.dataclass(frozen=True)
class TouchedLevel:
  """Nodes of one depth with a row below them that is left out.

  Attributes:
    nodes: n of them.
    left_n: rows below each that are not left out.
    number_E: which of the nodes each row that is left out hangs under.
  """

  nodes: Dead
  left_n: np.ndarray
  number_E: np.ndarray


@dataclasses.dataclass(frozen=True)
class Touched:
  """What rows that are left out change, level by level.

  Attributes:
    request_E: request of each, ascending.
    row_E: the row.
    levels: T of them.
  """

  request_E: np.ndarray
  row_E: np.ndarray
  levels: list[TouchedLevel]
