"""Small faults put into the code by cosmic-ray, and a seeded sample of them, spread over functions.

Imported by `tests/mutation/run.py` alone: cosmic-ray is an extra (`mutation`).
"""

import hashlib
import pathlib
import random
import re
from collections import defaultdict

import cosmic_ray.plugins
from cosmic_ray.ast import ast_nodes, get_ast_from_path
from cosmic_ray.ast.ast_query import ASTQuery
from cosmic_ray.work_item import MutationSpec

# Arithmetic on bits is hardly written here: a mask's `&` turned into `>>` is no likely mistake.
LEFT_OUT = re.compile("LShift|RShift|BitOr|BitAnd|BitXor|Unary")


def operators() -> dict[str, object]:
  """cosmic-ray's operators by name, without those left out and those that need arguments."""
  found = {}
  for name in sorted(cosmic_ray.plugins.operator_names()):
    kind = cosmic_ray.plugins.get_operator(name)
    if not LEFT_OUT.search(name) and not kind.arguments():
      found[name] = kind()
  return found


def of_module(path: pathlib.Path) -> list[MutationSpec]:
  """All mutants of one file, numbered as cosmic-ray does: operator by operator, then by place."""
  nodes = list(ast_nodes(get_ast_from_path(path)))
  found = []
  for name, operator in operators().items():
    places = [(node, *span) for node in nodes for span in operator.mutation_positions(node)]
    for occurrence, (node, start, end) in enumerate(places):
      where = ASTQuery(node).get_definition_name()
      found.append(MutationSpec(path, name, occurrence, start, end, definition_name=where))
  return found


def sample(mutants: list[MutationSpec], size: int, seed: int) -> list[MutationSpec]:
  """A sample in which functions come in turns: no function has two before every other has one.

  Args:
    mutants: of a room.
    size: how many; all, where there are fewer.
    seed: of the order of functions, and of the mutants of each.

  Returns:
    The sample, in the order in which it is drawn: a smaller one is its beginning.
  """
  by_function = defaultdict(list)
  for mutant in mutants:
    by_function[str(mutant.module_path), mutant.definition_name].append(mutant)
  draw = random.Random(seed)
  queues = [by_function[key] for key in sorted(by_function, key=str)]
  for queue in queues:
    draw.shuffle(queue)
  draw.shuffle(queues)
  drawn = []
  while len(drawn) < size and queues:
    drawn += [queue.pop() for queue in queues]
    queues = [queue for queue in queues if queue]
  return drawn[:size]


def digest(paths: list[pathlib.Path]) -> str:
  """Eight hex digits that change with the text of the files."""
  total = hashlib.sha256()
  for path in paths:
    total.update(path.read_bytes())
  return total.hexdigest()[:8]
