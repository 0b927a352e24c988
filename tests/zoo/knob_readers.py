"""Where a source file reads knobs: of what it holds as a section of the config, not of anything
by the same name.
"""

import ast
from collections.abc import Iterator

from gr4ad_jax.config import SECTIONS

_KINDS = {kind.__name__: section for section, kind in SECTIONS.items()}


def knobs_read(source: str) -> set[tuple[str, str]]:
  """(section, attribute) of every attribute that is read of a section.

  A section is `<anything>.data`, or a name or attribute that the same file annotates with the
  section's class or
  assigns a section to: `config: DataConfig`, `c = config.data`, `self.config = c`.
  """
  tree = ast.parse(source)
  held = {(name, section) for node in ast.walk(tree) for name, section in _annotated(node)}
  held |= {(f".{name}", section) for name, section in held}  # of a class: read as `self.<name>`

  def sections_of(node: ast.expr) -> set[str]:
    at = _name(node)
    return {section for section in SECTIONS if at == f".{section}" or (at, section) in held}

  assigned = [pair for node in ast.walk(tree) for pair in _assigned(node)]
  for _ in range(2):  # what is assigned may be assigned on
    held |= {(_name(to), section) for to, value in assigned for section in sections_of(value)}
  read = [
    node
    for node in ast.walk(tree)
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
  ]
  return {(section, node.attr) for node in read for section in sections_of(node.value)}


def _name(node: ast.expr) -> str:
  """`x` of a name, `.x` of an attribute x, whatever it is of; else nothing."""
  if isinstance(node, ast.Name):
    return node.id
  return f".{node.attr}" if isinstance(node, ast.Attribute) else ""


def _annotated(node: ast.AST) -> Iterator[tuple[str, str]]:
  """(name, section) of an argument or a variable that is annotated with a section's class, as
  `DataConfig | None`.
  """
  if isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation is not None:
    name = node.arg if isinstance(node, ast.arg) else _name(node.target)
    for part in ast.walk(node.annotation):
      if _name(part).lstrip(".") in _KINDS:
        yield name, _KINDS[_name(part).lstrip(".")]


def _assigned(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
  """(target, value) of an assignment, and of each part of `a, b = c, d`."""
  if isinstance(node, ast.Assign):
    for target in node.targets:
      if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
        yield from zip(
          target.elts, node.value.elts, strict=False
        )  # of `a, *b = …` what stands in one place
      else:
        yield target, node.value
