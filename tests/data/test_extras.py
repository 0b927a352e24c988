"""A package that is missing, and what Beam refuses, in one line each."""

import sys
import types

import pytest

from gr4ad_jax.data import extras
from gr4ad_jax.knobs import ConfigError


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "nowhere", None)
  for module in ("nowhere", "nowhere.part.of"):
    with pytest.raises(ImportError) as told:
      extras.optional(module, "text")
    assert str(told.value) == "nowhere is missing: pip install 'gr4ad_jax[text]'"
  assert extras.optional("json.decoder").JSONDecoder


def test_options_that_beam_refuses_are_told_in_one_line(monkeypatch):
  def pipeline(argv):
    if "--runner=Nothing" in argv:
      raise ValueError("no such runner\nknown ones: Direct")
    return argv

  monkeypatch.setitem(sys.modules, "apache_beam", types.SimpleNamespace(Pipeline=pipeline))
  assert extras.beam_pipeline(("--runner=Direct", "--x")) == ["--runner=Direct", "--x"]
  with pytest.raises(ConfigError) as told:
    extras.beam_pipeline(("--runner=Nothing", "--x"))
  assert str(told.value) == "--beam_options=--runner=Nothing --x is not allowed: no such runner"
