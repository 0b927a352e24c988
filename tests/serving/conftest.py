"""What the tests of the whole server share: one run, and engines on copies of it."""

import shutil

import pytest

from gr4ad_jax.engine.engine import ServingEngine
from tests.serving import runs as runs_lib
from tests.serving.runs import config_of


@pytest.fixture(scope="session")
def runs(shared_folder, trained_run):
  """See `runs.make`."""
  return runs_lib.make(trained_run, shared_folder / "served")


@pytest.fixture
def workdir(runs, tmp_path):
  return shutil.copytree(runs / "first", tmp_path / "run")


@pytest.fixture
def engine(workdir):
  with ServingEngine(str(workdir), config_of(workdir), "last") as engine:
    yield engine


@pytest.fixture(scope="module")
def steady(runs, tmp_path_factory):
  """An engine for tests that change nothing."""
  workdir = shutil.copytree(runs / "first", tmp_path_factory.mktemp("steady") / "run")
  with ServingEngine(str(workdir), config_of(workdir), "last") as engine:
    yield engine
