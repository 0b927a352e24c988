"""Where a published run is found, and where what is learned about it is written."""

import dataclasses
import sys
import types

import pytest

from gr4ad_jax.config import WEIGHTS, Config, ConfigError, ServeConfig
from gr4ad_jax.runs import published


def test_a_directory_is_itself_and_a_shipped_name_lies_in_the_package():
  assert published.locate("runs/x") == "runs/x"
  assert "online_retail" in published.names()
  assert published.locate("pretrained:online_retail") == str(published.SHIPPED / "online_retail")
  for wrong in ("pretrained:online_retai", "pretrained:", "pretrained:../pretrained"):
    with pytest.raises(ConfigError, match=f"--workdir={wrong} is not allowed: .* online_retail"):
      published.locate(wrong)


@pytest.fixture
def hub(monkeypatch):
  """A stand-in for huggingface_hub: a call, and what it is to raise."""
  module = types.ModuleType("huggingface_hub")
  names = "RepositoryNotFoundError RevisionNotFoundError HfHubHTTPError LocalEntryNotFoundError"
  module.errors = types.SimpleNamespace(
    **{name: type(name, (Exception,), {}) for name in names.split()}
  )
  module.calls = []
  module.error = None

  def snapshot_download(repository, revision):
    module.calls.append((repository, revision))
    if module.error:
      raise module.error
    return "/fetched"

  module.snapshot_download = snapshot_download
  monkeypatch.setitem(sys.modules, "huggingface_hub", module)
  return module


def test_a_repository_of_the_hub_is_fetched(hub):
  assert published.locate("hf:someone/a-run") == "/fetched"
  published.locate("hf:someone/a-run@v1.0")
  assert hub.calls == [("someone/a-run", None), ("someone/a-run", "v1.0")]


def test_what_the_hub_has_not_is_one_line(hub):
  for wrong in ("hf:alone", "hf:a/b/c", "hf:a/b@", "hf:"):
    with pytest.raises(ConfigError, match="is not allowed: hf:<owner>/<name>"):
      published.locate(wrong)
  assert hub.calls == []
  hub.error = hub.errors.RepositoryNotFoundError("404\nat a url")
  with pytest.raises(ConfigError, match="the hub has no such repository"):
    published.locate("hf:a/b")
  hub.error = hub.errors.LocalEntryNotFoundError("no network\nat all")
  with pytest.raises(OSError, match="hf:a/b cannot be fetched: no network at all"):
    published.locate("hf:a/b")


def test_without_the_package_its_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(ImportError, match=r"huggingface_hub is missing: .*gr4ad_jax\[hub\]"):
    published.locate("hf:a/b")


def test_where_a_server_and_an_evaluation_write(tmp_path, monkeypatch):
  run = tmp_path / "run"
  run.mkdir()
  config = Config(workdir=str(run))
  assert published.output_dir(config) == str(run)
  (run / WEIGHTS).write_bytes(b"1")
  monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
  first = published.output_dir(config)
  assert first == str(tmp_path / "state" / "gr4ad_jax" / "run-unknown")
  (run / "SHA256SUMS").write_text(f"{'ab' * 32}  {WEIGHTS}\n")
  assert published.output_dir(config) == first.replace("unknown", "abababab")
  named = dataclasses.replace(config, serving=ServeConfig(state_dir="elsewhere"))
  assert published.output_dir(named) == "elsewhere"
