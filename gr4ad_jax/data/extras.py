"""Packages that only some work needs."""

import importlib
from collections.abc import Sequence
from typing import Any

from gr4ad_jax.knobs import ConfigError


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


def beam_pipeline(options: Sequence[str]) -> Any:
  """A pipeline of Apache Beam, a context manager that runs it at its end.

  Args:
    options: as on a command line of Beam's.

  Raises:
    ImportError: the `beam` extra is missing.
    ConfigError: options that Beam refuses.
  """
  beam = optional("apache_beam", "beam")
  try:
    return beam.Pipeline(argv=list(options))
  except ValueError as error:
    raise ConfigError(
      f"--beam_options={' '.join(options)} is not allowed: {str(error).splitlines()[0]}"
    ) from error
