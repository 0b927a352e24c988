"""Packages that only some work needs."""

import importlib
from typing import Any


def optional(module: str, extra: str = "data") -> Any:
  """Imports a module of an extra. Raises ImportError, in one line that names the extra, where it
  is missing.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise ImportError(
      f"{module.split('.')[0]} is missing: pip install 'gr4ad_jax[{extra}]'"
    ) from error
