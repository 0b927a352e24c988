"""What the tests of whole runs share."""

import os

import jax
import pytest


@pytest.fixture(scope="session")
def compile_cache(tmp_path_factory):
  """One compilation cache for the session, of this process and of those it starts; small programs are kept too."""
  names = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
  before = {name: os.environ.get(name) for name in names}
  os.environ.update(zip(names, (str(tmp_path_factory.mktemp("xla")), "0"), strict=True))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  yield
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
  for name, value in before.items():
    os.environ.pop(name) if value is None else os.environ.update({name: value})
