"""The tables of docs/reference/flags.md, made from the config: a new knob stands there without a
further word.

python -m docs.flags_page            prints all tables
"""

import dataclasses
import re

from gr4ad_jax import config, families

_CODE = re.compile(r"(`[^`]+`|--\w+(?:=\w+)?)")


def kinds() -> dict[str, type]:
  """The shared sections, and by the family's name those of one family."""
  own = {name: families.own_section(name) for name in families.FAMILIES}
  return config.SECTIONS | {name: kind for name, kind in own.items() if kind}


def table(section: str) -> str:
  """A Markdown table of a section's knobs: flag, default, what is allowed, what it does.

  Args:
    section: a shared one, or a family, for its own.

  Raises:
    ValueError: a section that the config has not.
  """
  known = kinds()
  if section not in known:
    raise ValueError(f"the config has no section {section!r}; it has {', '.join(known)}")
  rows = ["| flag | default | allowed | what it does |", "|---|---|---|---|"]
  for field in dataclasses.fields(known[section]):
    default = config.shown(field.default)
    if isinstance(field.default, bool):
      default = default.lower()
    cells = (
      f"`--{field.name}`",
      f"`{default}`" if default else "empty",
      config.allowed(field),
      field.metadata["help"],
    )
    rows.append("| " + " | ".join(map(_cell, cells)) + " |")
  return "\n".join(rows) + "\n"


def _cell(text: str) -> str:
  """A text as a cell of Markdown: flags that it names are code, and no mark in the rest is read
  as one.
  """
  parts = _CODE.split(text)  # every second one is code
  parts[::2] = [re.sub(r"([\\*_<\[$])", r"\\\1", part) for part in parts[::2]]
  parts[1::2] = [f"`{part.strip('`')}`" for part in parts[1::2]]
  return "".join(parts).replace("|", "\\|")


if __name__ == "__main__":
  for name in kinds():
    print(f"## {name}\n\n{table(name)}")
