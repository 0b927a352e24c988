"""Keeps compiled programs between runs, so that a second run need not compile them again."""

import os

import jax

from gr4ad_jax import files


def enable_compilation_cache(directory: str = "") -> str:
  """Turns JAX's persistent compilation cache on.

  Args:
    directory: where it lies, made where it is missing. Empty: $JAX_COMPILATION_CACHE_DIR, else
      `gr4ad_jax/xla` in the user's cache ($XDG_CACHE_HOME, else ~/.cache).

  Returns:
    The directory.
  """
  # The first that is set: argument, environment, the user's cache.
  directory = directory or os.environ.get("JAX_COMPILATION_CACHE_DIR") or files.user_cache("xla")
  os.makedirs(directory, exist_ok=True)
  jax.config.update("jax_compilation_cache_dir", directory)
  return directory
