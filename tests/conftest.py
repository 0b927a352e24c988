"""What the tests share."""

import os

# Most of a test's time is compilation: LLVM's optimisations are left out, and so are the CPU's new
# fusion emitters, two thirds of the rest. Both hold for what the tests start, too.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
_FLAGS = "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(scope="session")
def compile_cache(tmp_path_factory, worker_id):
  """One compilation cache for the session, of all workers and of what they start; small programs
  are kept too.

  It has no limit to its size: at each write a limited one looks through all of its files, under a
    lock that every
  worker waits for. An entry read while it is written is compiled again.
  """
  shared = tmp_path_factory.getbasetemp()
  folder = (shared if worker_id == "master" else shared.parent) / "xla"
  folder.mkdir(exist_ok=True)
  settings = {
    "JAX_COMPILATION_CACHE_DIR": str(folder),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  before = {name: os.environ.get(name) for name in settings}
  os.environ.update(settings)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  yield
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
  for name, value in before.items():
    os.environ.pop(name) if value is None else os.environ.update({name: value})
