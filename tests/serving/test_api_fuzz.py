"""Property-based fuzzing from the server's own OpenAPI document: whatever comes, no 5xx but 503,
and as documented.
"""

import shutil

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from gr4ad_jax.engine.engine import ServingEngine
from gr4ad_jax.serving.app import create_app
from tests.serving.fakes import FakeEngine
from tests.serving.runs import config_of

# A well-formed request may name an unknown ad or user, or both or none of `user` and `history`: no
# schema tells that. The router names one method in `Allow` where a path has several. 503 is
# documented; `check` refuses every other 5xx.
NOT_MEANT = [
  checks.positive_data_acceptance, checks.ensure_resource_availability, checks.use_after_free,
  checks.allow_header_conformance, not_a_server_error,
]  # fmt: skip


class Switch:
  """An app that passes on to another: the operations must be known before the tests' fixtures
  are.
  """

  def __init__(self, app):
    self.app = app

  async def __call__(self, scope, receive, send):
    await self.app(scope, receive, send)


plain = create_app(FakeEngine(), hosts=())  # the requests name a host of the library's own
switch = Switch(plain)
schema = schemathesis.openapi.from_asgi("/openapi.json", switch)


@pytest.fixture(scope="module")
def interface():
  switch.app = plain


@pytest.fixture(scope="module")
def server(runs, tmp_path_factory):
  """A server on a tiny run."""
  workdir = shutil.copytree(runs / "first", tmp_path_factory.mktemp("fuzzed") / "run")
  with ServingEngine(str(workdir), config_of(workdir), "last") as engine:
    switch.app = create_app(engine, hosts=())
    yield


def check(case):
  response = case.call()
  assert response.status_code < 500 or response.status_code == 503, response.text
  case.validate_response(response, excluded_checks=NOT_MEANT)


few, many = (
  settings(
    max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck)
  )  # of each operation
  for examples in (20, 500)
)


@pytest.mark.long  # the same requests come to a real engine below
@schema.parametrize()
@few
def test_no_request_breaks_the_interface(interface, case):
  check(case)


@schema.parametrize()
@few
def test_no_request_breaks_the_server(server, case):
  check(case)


@pytest.mark.long
@schema.parametrize()
@many
def test_thousands_of_requests_break_no_interface(interface, case):
  check(case)


@pytest.mark.long
@schema.parametrize()
@many
def test_thousands_of_requests_break_no_server(server, case):
  check(case)
