"""The notebooks are valid, hold no outputs, install what the machine needs, and run from first
cell to last.
"""

import fnmatch
import glob
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest
from absl import flags

from gr4ad_jax import config as config_lib
from gr4ad_jax.runs import workdir as workdir_lib
from tests import tiny

_ROOT = pathlib.Path(__file__).parents[1]
_FOLDER = _ROOT / "experiments" / "colab"
_NAMES = sorted(path.stem for path in _FOLDER.glob("*.ipynb"))


def _sources(name):
  cells = json.loads((_FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
  return {cell["id"]: "".join(cell["source"]) for cell in cells}


@pytest.fixture(scope="module")
def nbformat():
  return pytest.importorskip("nbformat")


@pytest.mark.parametrize("name", _NAMES)
def test_it_is_clean(name, nbformat):
  notebook = nbformat.read(_FOLDER / f"{name}.ipynb", as_version=4)
  nbformat.validate(notebook)
  assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
  for cell in notebook.cells:
    if cell.cell_type == "code":
      assert not cell.outputs and cell.execution_count is None
      assert (
        "/home/" not in cell.source
        and "/work/" not in cell.source
        and "/content/" not in cell.source
      )


def test_all_begin_alike():
  assert _NAMES == ["bring_your_own_data", "quickstart", "reproduce_table", "segment"]
  for cell in ("install-text", "install", "devices"):
    assert len({_sources(name)[cell] for name in _NAMES}) == 1


@pytest.mark.parametrize(
  ("device", "extra"),
  [
    ("/dev/nvidia0", "jax[cuda12]"),
    ("/dev/accel0", "jax[tpu]"),
    ("/dev/vfio/0", "jax[tpu]"),
    ("", None),
  ],
)
@pytest.mark.parametrize("repo", ["../..", "https://host/repo.git"])
def test_it_installs_for_the_accelerator(device, extra, repo, monkeypatch):
  calls = []
  monkeypatch.chdir(_FOLDER)
  find_spec, exists = importlib.util.find_spec, os.path.exists
  monkeypatch.setattr(
    importlib.util, "find_spec", lambda name: None if name == "gr4ad_jax" else find_spec(name)
  )
  monkeypatch.setattr(
    os.path, "exists", lambda path: path == device or ("/dev/" not in path and exists(path))
  )
  monkeypatch.setattr(
    glob, "glob", lambda pattern: [device] if fnmatch.fnmatch(device, pattern) else []
  )
  monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append(command))
  source = _sources("quickstart")["install"].replace('REPO = "../.."', f'REPO = "{repo}"')
  with pytest.raises(SystemExit, match="Restart session"):  # this process has imported JAX
    exec(source, {})
  [command] = calls
  package = (
    "../..[data,text,segmentation,plots,log]"
    if repo == "../.."
    else f"gr4ad_jax[data,text,segmentation,plots,log] @ git+{repo}"
  )
  assert command == [
    sys.executable,
    "-m",
    "pip",
    "install",
    "--quiet",
    package,
    *([extra] if extra else []),
  ]


def test_a_repo_that_is_not_there_is_told_in_one_line(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)  # on Colab the notebook does not lie in a checkout
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  monkeypatch.setattr(
    subprocess, "run", lambda *args, **kwargs: pytest.fail("nothing is installed")
  )
  with pytest.raises(SystemExit, match=r"^no \.\./\.\./setup\.cfg: set REPO [^\n]+$"):
    exec(_sources("quickstart")["install"], {})


def test_it_says_that_jax_does_not_see_an_accelerator(monkeypatch, capsys):
  exists = os.path.exists
  monkeypatch.setattr(os.path, "exists", lambda path: path == "/dev/nvidia0" or exists(path))
  names = {}
  for cell in ("install", "devices"):  # the package is there: nothing is installed
    exec(_sources("quickstart")[cell], names)
  out = capsys.readouterr().out
  import jax

  assert out.startswith(f"JAX {jax.__version__}: {jax.devices()}")
  assert ("pip install 'jax[cuda12]'" in out) == (jax.default_backend() == "cpu")


def test_a_change_of_a_trained_run_is_refused(tmp_path, monkeypatch):
  sources = _sources("quickstart")
  monkeypatch.setenv("QUICKSTART_WORKDIR", str(tmp_path / "run"))
  monkeypatch.setenv("QUICKSTART_STEPS", "8")
  names = {}
  exec(sources["settings"], names)
  workdir_lib.save_config(names["config"])
  (tmp_path / "run" / config_lib.CHECKPOINTS / "8").mkdir(parents=True)
  exec(sources["settings"], {})  # the same again
  with pytest.raises(config_lib.ConfigError, match="--width=64 is not allowed: the run in"):
    exec(
      sources["settings"].replace("config_lib.ModelConfig()", "config_lib.ModelConfig(width=64)"),
      {},
    )
  # The library writes the run's files, not the notebook.
  assert "json" not in sources["data"] and "run.start(config)" in sources["data"]


@pytest.fixture
def ablate():
  """The binary as a module; its flags go again, since tests that run it define them anew."""
  from experiments import ablate

  yield ablate
  for name in list(flags.FLAGS):
    if flags.FLAGS.find_module_defining_flag(name) == ablate.__name__:
      delattr(flags.FLAGS, name)


def test_the_full_table_is_that_of_the_binary(ablate):
  from gr4ad_jax.studies import ablation

  names = {}
  exec(_sources("reproduce_table")["settings"].replace("FULL = False", "FULL = True"), names)
  assert (
    names["rows"] == ablation.ROWS
    and [str(seed) for seed in names["seeds"]] == ablate._SEEDS.default
  )
  plan = ablation.Plan(config_lib.Config())
  assert (plan.epochs, plan.learning_rate) == (ablate._EPOCHS.default, ablate._RATE.default)
  flagfile = (_ROOT / "experiments" / "flagfiles" / "online_retail.flags").read_text(
    encoding="utf-8"
  )
  given = dict(line[2:].split("=") for line in flagfile.splitlines() if line.startswith("--"))
  config = config_lib.with_knobs(config_lib.Config(), names["knobs"])
  assert (config.data.dataset, config.training.fit_splits) == (
    given["dataset"],
    given["fit_splits"],
  )
  assert config.training.epochs == float(given["epochs"])


@pytest.fixture
def execute(nbformat, tmp_path, monkeypatch):
  """Runs a notebook in tmp_path, with cells of the test's own put after some; returns outputs by
  cell id.
  """
  nbclient = pytest.importorskip("nbclient")
  pytest.importorskip("ipykernel")
  kernel = (
    tmp_path / "jupyter" / "kernels" / "python3"
  )  # this interpreter, whatever kernels the machine has
  kernel.mkdir(parents=True)
  command = f'["{sys.executable}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"]'
  (kernel / "kernel.json").write_text(
    f'{{"argv": {command}, "display_name": "Python 3", "language": "python"}}'
  )
  for name, value in {
    "JUPYTER_PATH": tmp_path / "jupyter",
    "IPYTHONDIR": tmp_path / "ipython",
    "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
    "PYTHONPATH": f"{_ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
  }.items():
    monkeypatch.setenv(name, str(value))

  def run(name, after=None):
    notebook = nbformat.read(_FOLDER / f"{name}.ipynb", as_version=4)
    cells = []
    for cell in notebook.cells:
      cells.append(cell)
      if cell.id in (after or {}):
        cells.append(nbformat.v4.new_code_cell(after[cell.id], id=f"{cell.id}-test"))
    notebook.cells = cells
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(
      notebook, timeout=540, kernel_name="python3", resources=resources
    ).execute()
    return {cell.id: cell.get("outputs", []) for cell in notebook.cells}

  return run


def _text(outputs):
  return "".join(output["text"] for output in outputs if output.get("name") == "stdout")


def _shown(outputs, kind):
  return [output["data"][kind] for output in outputs if kind in output.get("data", {})]


@pytest.mark.slow
@pytest.mark.long
def test_quickstart_runs(execute, tmp_path, monkeypatch):
  for name, value in {"STEPS": 8, "WORKDIR": tmp_path / "run", "DATA": tmp_path / "data"}.items():
    monkeypatch.setenv(f"QUICKSTART_{name}", str(value))
  found = execute("quickstart")
  assert "JAX " in _text(found["devices"])
  assert "step 8/8" in _text(found["train"])
  assert _shown(found["curves"], "image/png")
  assert len(found["table"]) == 2 and "gr4ad" in _shown(found["table"], "text/markdown")[0]
  assert len(_text(found["recommend"]).splitlines()) == 10
  assert (tmp_path / "run" / "eval" / "metrics.json").exists()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("compile_cache")
def test_segment_runs(execute, tmp_path, monkeypatch):
  for name, value in {
    "STEPS": 2, "SCENES": 16, "WORKDIR": tmp_path / "run", "DATA": tmp_path / "data",
  }.items():  # fmt: skip
    monkeypatch.setenv(f"SEGMENT_{name}", str(value))
  found = execute("segment")
  assert "step 2/2" in _text(found["train"]) and _shown(found["scenes"], "image/png")
  assert "shuffled sentences" in _text(found["table"]) and _shown(found["table"], "image/png")
  assert 0 < len(_text(found["segment"]).splitlines()) < 4


# Sizes at which compiling takes most of the time, and that without optimisations.
_TINY = {
  "codebooks": (8, 8), "beams": (8, 8), "layers": 1, "lazy_layers": 0, "copy": "off", "width": 16,
  "tower_steps": 3, "tower_width": 8, "kmeans_iterations": 2, "batch_size": 8, "history_slots": 8,
  "neighbor_slots": 4, "rising_slots": 4, "targets": 4, "warmup_steps": 1, "log_every": 1,
  "max_steps": 2,
}  # fmt: skip
_TINY_REWARD = {"reward_width": 8, "reward_bins": 3}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("compile_cache")
def test_reproduce_table_runs(execute, tmp_path):
  log = tiny.write_log(tmp_path / "log")
  knobs = _TINY | _TINY_REWARD | dict(flag[2:].split("=") for flag in tiny.source_flags(log))
  found = execute("reproduce_table", {"settings": f"knobs |= {knobs!r}\nrows = rows[:2]"})
  assert _text(found["run"]).count("step 2/2") == 1 and "reward model" in _text(found["run"])
  [table] = _shown(found["table"], "text/markdown")
  assert "| vsl " in table and "| vsl_decode_value | vsl " in table
  assert _shown(found["table"], "image/png")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("compile_cache")
def test_bring_your_own_data_runs(execute, tmp_path):
  mine = _sources("bring_your_own_data")["mine"]
  for before, now in {
    'ADS, EVENTS = "", ""': (
      f'ADS, EVENTS = (f"{tmp_path}/runs/my_data/{{name}}.csv" for name in ("ads", "events"))'
    ),
    "KNOBS = {}": "KNOBS = SMALL",
  }.items():
    assert before in mine
    mine = mine.replace(before, now)
  found = execute("bring_your_own_data", {"settings": f"SMALL |= {_TINY!r}", "mine": mine})
  assert _text(found["files"]).splitlines()[:2] == ["ads.csv", "ad_id,text,account_id,price"]
  assert "step 2/2" in _text(found["train"])
  assert "gr4ad" in _shown(found["table"], "text/markdown")[0]
  assert len(_text(found["recommend"]).splitlines()) == 2 + 2 * 5
  errors = _text(found["errors"]).splitlines()
  told = dict(zip(errors[::2], errors[1::2], strict=True))
  assert "column 'ad_id' is missing" in told["a column is missing:"]
  assert "row 5: 'yesterday' is no time" in told["a time is no time:"]
  assert "'re99' is not in the ad table" in told["an ad is unknown:"]
  assert "row 5: '-1' is negative, and only" in told["a click is taken back:"]
  assert "--lazy_layers=2 is not allowed" in told["settings that contradict each other:"]
  assert _text(found["mine"]) == "no files yet: set ADS and EVENTS\n"
  assert len([line for line in _text(found["mine-test"]).splitlines() if ": " in line]) > 5
