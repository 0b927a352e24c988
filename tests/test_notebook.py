"""The quickstart notebook is valid, committed without outputs, and runs from its first cell to its last."""

import json
import os
import pathlib
import sys

import pytest

from gr4ad_jax import config as config_lib
from gr4ad_jax.training import workdir as workdir_lib

_ROOT = pathlib.Path(__file__).parents[1]
_NOTEBOOK = _ROOT / "experiments" / "colab" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def nbformat():
  return pytest.importorskip("nbformat")


def test_it_is_clean(nbformat):
  notebook = nbformat.read(_NOTEBOOK, as_version=4)
  nbformat.validate(notebook)
  assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
  for cell in notebook.cells:
    if cell.cell_type == "code":
      assert not cell.outputs and cell.execution_count is None
      assert "/home/" not in cell.source and "/work/" not in cell.source and "/content/" not in cell.source


def test_a_change_of_a_trained_run_is_refused(tmp_path, monkeypatch):
  sources = {cell["id"]: "".join(cell["source"]) for cell in json.loads(_NOTEBOOK.read_text())["cells"]}
  monkeypatch.setenv("QUICKSTART_WORKDIR", str(tmp_path / "run"))
  monkeypatch.setenv("QUICKSTART_STEPS", "8")
  names = {}
  exec(sources["settings"], names)
  workdir_lib.save_config(names["config"])
  (tmp_path / "run" / config_lib.CHECKPOINTS / "8").mkdir(parents=True)
  exec(sources["settings"], {})  # the same again
  with pytest.raises(config_lib.ConfigError, match="--width=64 is not allowed: the run in"):
    exec(sources["settings"].replace("config_lib.ModelConfig()", "config_lib.ModelConfig(width=64)"), {})
  assert "json" not in sources["data"] and "workdir_lib.save_config(config)" in sources["data"]


@pytest.mark.slow
def test_it_runs(nbformat, tmp_path, monkeypatch):
  nbclient = pytest.importorskip("nbclient")
  pytest.importorskip("ipykernel")
  kernel = tmp_path / "jupyter" / "kernels" / "python3"  # this interpreter, whatever kernels the machine has
  kernel.mkdir(parents=True)
  command = f'["{sys.executable}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"]'
  (kernel / "kernel.json").write_text(f'{{"argv": {command}, "display_name": "Python 3", "language": "python"}}')
  workdir = tmp_path / "run"
  for name, value in {
    "JUPYTER_PATH": tmp_path / "jupyter",
    "IPYTHONDIR": tmp_path / "ipython",
    "QUICKSTART_STEPS": 8,
    "QUICKSTART_WORKDIR": workdir,
    "QUICKSTART_DATA": tmp_path / "data",
    "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
    "PYTHONPATH": f"{_ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
  }.items():
    monkeypatch.setenv(name, str(value))
  notebook = nbformat.read(_NOTEBOOK, as_version=4)
  client = nbclient.NotebookClient(
    notebook, timeout=540, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
  )
  client.execute()
  by_id = {cell.id: cell.get("outputs", []) for cell in notebook.cells}

  def text(name):
    return "".join(output["text"] for output in by_id[name] if output.get("name") == "stdout")

  assert "step 8/8" in text("train")
  assert [output for output in by_id["curves"] if "image/png" in output.get("data", {})]
  assert len([output for output in by_id["table"] if "data" in output]) == 2
  assert len(text("recommend").splitlines()) == 10
  assert (workdir / "eval" / "metrics.json").exists()
