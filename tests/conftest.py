"""What the tests share."""

import gc
import os
import shutil

# Most of a test's time is compilation: LLVM's optimisations are left out, and so are the CPU's new
# fusion emitters, two thirds of the rest. A program is compiled in one piece: the workers have the
# other cores, and cutting it up is a tenth of the work. All of it holds for what the tests start.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Programs do not say which lines their operations come from: noting it takes time.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
_FLAGS = (
  "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
  "--xla_cpu_parallel_codegen_split_count=1",
)
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *_FLAGS)).strip()

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from flax.core import meta  # noqa: E402
from flax.core.scope import Scope  # noqa: E402

from gr4ad_jax.locks import Lock  # noqa: E402
from tests import tiny  # noqa: E402

# JAX's traces are millions of small objects that live on in its caches. Looking through them each
# time that 700 more have come takes a seventh of the tests' time.
gc.set_threshold(100_000, 50, 1000)


def pytest_collection_finish():
  """What was imported stays to the end: no collection of garbage looks through it."""
  gc.freeze()


def pytest_sessionfinish():
  """All that is left goes with the process: it is not looked through once more."""
  gc.freeze()


_checked = Scope.param


def _param(scope, name, init_fn, *asked, unbox=True, **more):
  """`Scope.param`. Each time that a module reads a parameter, Flax traces its initialiser to see
  whether the shapes agree: a quarter of a forward's trace. An initialiser gives the shape that it
  is asked for, so where the parameter has this shape, that is known without.
  """
  if asked and scope.has_variable("params", name):
    boxed = scope.get_variable("params", name)
    value = meta.unbox(boxed)
    if isinstance(asked[0], tuple) and np.shape(value) == asked[0]:
      scope.reserve(name, "params")
      return value if unbox else boxed
  return _checked(scope, name, init_fn, *asked, unbox=unbox, **more)


Scope.param = _param


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
  """A folder that all workers of the session see."""
  own = tmp_path_factory.getbasetemp()
  return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def compile_cache(shared_folder):
  """One compilation cache for the session, of all workers and of what they start; small programs
  are kept too.

  It has no limit to its size: at each write a limited one looks through all of its files, under a
  lock that every worker waits for. An entry read while it is written is compiled again.
  """
  folder = shared_folder / "xla"
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


@pytest.fixture(scope="session")
def trained_run(shared_folder, compile_cache):
  """The working directory of a finished run of four steps, saved half-way and at the end. Read it;
  copy it before you change it.

  Whichever worker asks first trains it, and the others wait. It is the one training of all tests
  that want a run and do not say which: their programs are most of what it costs.
  """
  folder = shared_folder / "trained_run"
  with Lock(f"{folder}.lock", wait=True):
    if not folder.exists():
      log = tiny.write_log(shared_folder / "small_log")
      once = ("--max_steps=4", "--save_every=2", "--noevaluate", "--layers=1", "--lazy_layers=0")
      arguments = (*tiny.source_flags(log), *tiny.SETTINGS, *once)
      done = tiny.run("train", *arguments, f"--workdir={folder}")
      assert (done.status, done.err) == (0, "")
  return folder


@pytest.fixture(scope="session")
def small_run(shared_folder, trained_run):
  """`trained_run` with its last checkpoint alone. Read it; copy it before you change it."""
  folder = shared_folder / "small_run"
  with Lock(f"{folder}.lock", wait=True):
    if not folder.exists():
      shutil.copytree(trained_run, folder)
      shutil.rmtree(folder / "checkpoints" / "2")
  return folder


@pytest.fixture
def no_pictures(monkeypatch):
  """Draws nothing: of an evaluation the figures alone are looked at."""
  # By name: most tests do without what it imports.
  monkeypatch.setattr("gr4ad_jax.ranking.scoring._plot", lambda *_: None)
