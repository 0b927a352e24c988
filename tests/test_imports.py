"""The core needs no extra, nothing needs TensorFlow, and a missing extra is named in one line."""

import pathlib
import subprocess
import sys

import pytest

import gr4ad_jax
from gr4ad_jax.answering import recommender

_ROOT = pathlib.Path(__file__).parents[1]
_OPTIONAL = (
  "tensorflow_datasets", "array_record", "grain", "wordllama", "pandas", "pyarrow", "matplotlib",
  "tensorboardX", "sentence_transformers", "fastapi", "uvicorn", "starlette", "pydantic",
  "prometheus_client", "httpx", "PIL", "pycocotools", "safetensors", "tokenizers",
  "torch", "transformers", "lightgbm", "apache_beam", "redis", "s3fs", "gcsfs",
)  # fmt: skip
_BLOCK = f"""
import sys
class Block:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in {_OPTIONAL}:
      raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""


def _python(code: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=_ROOT
  )


def _modules() -> list[str]:
  files = sorted((_ROOT / "gr4ad_jax").rglob("*.py"))
  names = [
    ".".join(file.relative_to(_ROOT).with_suffix("").parts).removesuffix(".__init__")
    for file in files
  ]
  needy = ("app", "connections", "event_routes", "reason_schemas", "schemas")
  served = tuple(f"gr4ad_jax.serving.{name}" for name in needy)
  builders = ("gr4ad_jax.builders", "gr4ad_jax.scenes.builders")
  extras = (*builders, *served)  # of `data` and `serve`
  free = ("gr4ad_jax.builders", "gr4ad_jax.builders.prepare")
  return [name for name in names if name in free or not name.startswith(extras)]


def test_core_trainer_and_decoder_need_no_extra():
  binaries = [f"experiments.{name}" for name in ("train", "evaluate", "tokenize", "recommend")]
  done = _python(
    _BLOCK
    + "\n".join(f"import {name}" for name in (*_modules(), *binaries))
    + """
found = [name for name in ("tensorflow", "torch") if name in sys.modules]
assert not found, found
"""
  )
  assert done.returncode == 0, done.stderr


_NEEDS = (  # code, and what it says without the extra that it needs
  ("from gr4ad_jax.config import DataConfig; from gr4ad_jax.builders import prepare; "
   "prepare.load_dataset(DataConfig())",
   "tensorflow_datasets is missing: pip install 'gr4ad_jax[data]'"),
  ("from gr4ad_jax.reading import tables; tables.constant('x', 'y', 1)",
   "pyarrow is missing: pip install 'gr4ad_jax[data]'"),
  ("from gr4ad_jax.evaluation.plots import plot_comparison; "
   "plot_comparison({'systems': {'a': {'all': {'m': {}}}}}, 'x.png')",
   "matplotlib is missing: pip install 'gr4ad_jax[plots]'"),
  ("from gr4ad_jax.training.writers import TensorboardWriter; TensorboardWriter('x')",
   "tensorboardX is missing: pip install 'gr4ad_jax[log]'"),
  ("from gr4ad_jax.sid.encoders import _wordllama; _wordllama(['a'])",
   "wordllama is missing: pip install 'gr4ad_jax[text]'"),
  ("from gr4ad_jax.swing.pipeline import similar_ads; similar_ads(None)",
   "apache_beam is missing: pip install 'gr4ad_jax[beam]'"),
)  # fmt: skip
_EACH = f"""
for code, _ in {_NEEDS!r}:
  try:
    exec(code, {{}})
  except Exception as error:
    print(f"{{type(error).__name__}}: {{error}}")
  else:
    print("no error:", code)
"""


def test_a_missing_extra_is_named():
  done = _python(_BLOCK + _EACH)
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines() == [f"ImportError: {message}" for _, message in _NEEDS]


@pytest.mark.long  # the line of any ImportError, and its status: `test_flags.py`
def test_a_binary_says_it_in_one_line(tmp_path):
  done = _python(
    _BLOCK
    + f"""
import runpy
sys.argv = ["train", "--workdir={tmp_path}/run", "--data_dir={tmp_path}/data"]
runpy.run_module("experiments.train", run_name="__main__")
"""
  )
  assert done.returncode == 2 and not (tmp_path / "run").exists()
  assert done.stderr == "error: tensorflow_datasets is missing: pip install 'gr4ad_jax[data]'\n"


def test_preparing_data_does_not_import_tensorflow():
  done = _python(
    "import sys; import gr4ad_jax.builders.registry; assert 'tensorflow' not in sys.modules"
  )
  assert done.returncode == 0, done.stderr


def test_the_package_is_light_until_something_is_asked_of_it():
  done = _python(
    "import sys, gr4ad_jax; assert 'jax' not in sys.modules and 'Recommender' in dir(gr4ad_jax)"
  )
  assert done.returncode == 0, done.stderr
  assert gr4ad_jax.Recommender is recommender.Recommender
  assert not hasattr(gr4ad_jax, "Recomender")
