"""Keeps compiled programs between runs."""

import os

import jax


def enable_compilation_cache(directory: str = "") -> str:
  """Turns JAX's persistent compilation cache on.

  Args:
    directory: where it lies; empty: $JAX_COMPILATION_CACHE_DIR, else `gr4ad_jax/xla` in the user's
      cache.

  Returns:
    The directory.
  """
  user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
  directory = (
    directory
    or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    or os.path.join(user_cache, "gr4ad_jax", "xla")
  )
  os.makedirs(directory, exist_ok=True)
  jax.config.update("jax_compilation_cache_dir", directory)
  return directory
