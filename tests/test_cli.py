"""The command `gr4ad`, flagfiles by name, and lines for collectors of logs."""

import io
import json
import logging
import math
import pathlib
import re
import subprocess
import sys

import pytest
from absl import flags

from experiments import cli, log_lines, progress, shipped
from gr4ad_jax.training import loop
from tests import tiny

_ROOT = pathlib.Path(__file__).parents[1]
_BINARIES = {
  path.stem
  for path in (_ROOT / "experiments").glob("*.py")
  if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
} - {"cli"}


def _cli(monkeypatch, *arguments: str) -> int:
  monkeypatch.setattr(sys, "argv", ["gr4ad", *arguments])
  return cli.main()


def test_every_binary_is_a_subcommand_with_a_line_of_its_own(monkeypatch, capsys):
  assert set(cli.commands()) == _BINARIES
  assert _cli(monkeypatch, "--help") == 0
  rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
  assert {row.split()[0] for row in rows} == _BINARIES
  assert all(len(row.split()) > 3 for row in rows)
  assert "python -m" not in "".join(cli.commands().values())


def test_a_command_that_there_is_not_is_one_line(monkeypatch, capsys):
  assert _cli(monkeypatch, "trian") == 2
  said = capsys.readouterr()
  assert said.err == (
    f"error: 'trian' is no command of gr4ad; there is {', '.join(sorted(_BINARIES))}\n"
  )
  assert said.out == ""
  assert _cli(monkeypatch) == 2 and capsys.readouterr().err.startswith("usage: gr4ad COMMAND")


def test_binaries_import_one_another_relatively():
  """Installed, their package has another name."""
  for path in (_ROOT / "experiments").glob("*.py"):
    code = path.read_text(encoding="utf-8")
    assert not re.search(r"^\s*(from|import) experiments\b", code, re.MULTILINE), path.name


def test_what_is_installed_has_the_binaries_and_runs_from_anywhere(tmp_path):
  """The tree that a wheel is made of, and the command in it, from an empty directory."""
  built = tmp_path / "built"
  command = [sys.executable, "setup.py", "-q", "build", f"--build-base={tmp_path}/base"]
  made = subprocess.run(
    [*command, f"--build-lib={built}"], cwd=_ROOT, capture_output=True, text=True, check=False
  )
  assert made.returncode == 0, made.stderr
  files = {path.relative_to(built).as_posix() for path in built.rglob("*") if path.is_file()}
  assert {name.split("/")[0] for name in files} == {"gr4ad_jax"}  # no name of others
  wanted = {"experiments/online_retail", *(f"experiments/{name}" for name in shipped.names())}
  wanted = {name.replace("experiments/", "experiments/flagfiles/") + ".flags" for name in wanted}
  wanted |= {"experiments/flagfiles/zoo/amazon_reviews/shared.flagfile", "py.typed"}
  wanted |= {f"experiments/{name}.py" for name in _BINARIES}
  wanted |= {"data/online_retail/README.md", "serving/page.html"}
  assert {f"gr4ad_jax/{name}" for name in wanted} <= files
  assert not [name for name in files if name.endswith((".ipynb", ".pyc"))]
  empty = tmp_path / "empty"
  empty.mkdir()
  done = subprocess.run(
    [sys.executable, "-m", "gr4ad_jax.experiments.cli", "--version"],
    cwd=empty, env={"PYTHONPATH": str(built)}, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("gr4ad_jax 0.")


def test_a_shipped_flagfile_is_found_by_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  found = shipped.expanded(["--a", "--flagfile=online_retail", "--b"])
  assert found == [
    "--a", "--dataset=online_retail", "--preset=tiny", "--fit_splits=train+valid", "--epochs=3",
    "--b",
  ]  # fmt: skip
  named = shipped.expanded(["-flagfile", "experiments/flagfiles/online_retail.flags"])
  assert named == found[1:-1]  # as the pages write it
  nested = shipped.expanded(["--flagfile=zoo/online_retail/gr4ad_reward"])
  assert nested[: len(named)] == named and "--reranker=reward" in nested


def test_a_file_of_ones_own_wins_and_flags_after_two_dashes_stay(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "online_retail").write_text("# mine\n\n  --epochs=9\n// no\n", encoding="utf-8")
  found = shipped.expanded(["--flagfile=online_retail", "--", "--flagfile=x"])
  assert found == ["--epochs=9", "--", "--flagfile=x"]


def test_a_flagfile_that_there_is_not_or_that_names_itself_is_refused(tmp_path):
  with pytest.raises(flags.Error, match="--flagfile=onlin is not allowed: .* btdnet_base, "):
    shipped.find("onlin")
  with pytest.raises(flags.Error, match="is not allowed"):
    shipped.find("../../setup.py")  # nothing outside the folder
  (tmp_path / "a").write_text(f"--flagfile={tmp_path}/b\n", encoding="utf-8")
  (tmp_path / "b").write_text(f"--flagfile={tmp_path}/a\n", encoding="utf-8")
  with pytest.raises(flags.Error, match="names itself"):
    shipped.expanded([f"--flagfile={tmp_path}/a"])
  with pytest.raises(flags.Error, match="cannot be read: Is a directory"):
    shipped.expanded([f"--flagfile={tmp_path}"])


def _objects(text: str) -> list[dict]:
  return [json.loads(line) for line in text.splitlines()]


def test_mistakes_are_objects_with_json_lines(tmp_path):
  for wrong in (f"--workdir={tmp_path}", "--no_such=1", "--flagfile=nothing"):
    done = tiny.run("evaluate", wrong, "--log_format=json")
    (said,) = _objects(done.err)
    assert (done.status, done.out, said["level"]) == (2, "", "ERROR")
    assert not said["message"].startswith("error") and said["time"].endswith("+00:00")
  assert not log_lines.is_on()


def test_lines_logs_numbers_and_tracebacks_become_objects(monkeypatch):
  out = io.StringIO()
  err = io.StringIO()
  monkeypatch.setattr(sys, "stdout", out)
  monkeypatch.setattr(sys, "stderr", err)
  handler = logging.StreamHandler(err)
  log = logging.getLogger()
  monkeypatch.setattr(log, "handlers", [handler])
  try:
    log_lines.begin()
    print("a table\n\nof two", end="")
    print(" rows")
    print('{"ads": []}')  # an answer
    print("{braces}")
    log_lines.say("step 3", step=3)
    print("error: it is gone", file=sys.stderr)
    logging.getLogger("x.y").warning("%s\nmore", "w" * 2000)
    try:
      raise ValueError("no\nnumber")
    except ValueError:
      log.exception("it failed")
      sys.excepthook(*sys.exc_info())
    print("no end", end="")
  finally:
    log_lines.end()
  assert sys.stdout is out and sys.stderr is err and sys.excepthook is sys.__excepthook__
  said = _objects(out.getvalue())
  assert [one.get("message") for one in said] == [
    "a table", "of two rows", None, "{braces}", "step 3", "no end"
  ]  # fmt: skip
  assert said[2] == {"ads": []} and said[4]["step"] == 3
  told = _objects(err.getvalue())
  assert [one["level"] for one in told] == ["ERROR", "WARNING", "ERROR", "CRITICAL"]
  assert told[0]["message"] == "it is gone" and told[1]["logger"] == "x.y"
  assert len(told[1]["message"]) < 1100 and told[1]["message"].endswith("…\nmore")
  assert told[2]["message"] == "it failed" and "ValueError: no" in told[2]["traceback"]
  assert told[3]["message"] == "no number" and "ValueError: no" in told[3]["traceback"]


def test_progress_has_its_numbers_as_fields(monkeypatch):
  out = io.StringIO()
  monkeypatch.setattr(sys, "stdout", out)
  log_lines.begin()
  try:
    progress.show_progress(
      loop.Progress(2, 4, 0.5, math.inf, {"loss": 3.5}, {"recall@10": 0.25}, True, {"ads": 9.0})
    )
    told = progress.RoundProgress()
    told("users", 5, 10)
  finally:
    log_lines.end()
  step, users = _objects(out.getvalue())
  del step["time"]
  assert step.pop("message").startswith("step 2/4  loss 3.500  0.50 steps/s, 9 ads/s")
  assert step == {
    "level": "INFO", "step": 2, "total_steps": 4, "steps_per_second": 0.5, "eta_seconds": None,
    "ads_per_second": 9.0, "loss": 3.5, "valid/recall@10": 0.25,
  }  # fmt: skip
  assert (users["what"], users["done"], users["total"]) == ("users", 5, 10)
