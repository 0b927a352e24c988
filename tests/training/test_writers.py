"""Scalars reach their files once a step, across resumes too."""

import json
import sys

import pytest

from gr4ad_jax.training import writers


def _steps(path):
  return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_jsonl_resume_drops_later_and_torn_lines(tmp_path):
  path = tmp_path / "run" / "metrics.jsonl"
  writer = writers.JsonlWriter(str(path))
  for step in (2, 4, 6):
    writer.write(step, {"train/loss": step / 2})
  writer.close()
  with open(path, "a") as file:
    file.write('{"step": 4, "train/lo')  # the process was killed here
  writer = writers.JsonlWriter(str(path), resume_step=4)
  writer.write(6, {"train/loss": 9})
  writer.close()
  assert _steps(path) == [2, 4, 6]
  assert json.loads(path.read_text().splitlines()[-1]) == {"step": 6, "train/loss": 9.0}


def test_lines_that_are_none_of_metrics_are_left_out_and_told(tmp_path, caplog):
  path = tmp_path / "metrics.jsonl"
  good = [json.dumps({"step": step, "train/loss": step / 2}).encode() + b"\n" for step in (2, 4)]
  bad = [
    b"garbage\n",
    b"\xff\xfe\n",
    b"[2]\n",
    b'{"train/loss": 1}\n',
    b'{"step": "3"}\n',
    b'{"step": true}\n',
    b"\n",
  ]
  path.write_bytes(good[0] + b"".join(bad) + good[1] + b"torn")
  with caplog.at_level("WARNING"):
    writers.JsonlWriter(str(path), resume_step=4).close()
  assert path.read_bytes() == b"".join(good)
  assert [
    f"{path}, line {number}: no line of metrics" in text
    for number, text in enumerate(caplog.messages, 2)
  ] == ([True] * len(bad))


def test_a_new_run_starts_an_empty_file(tmp_path):
  path = tmp_path / "metrics.jsonl"
  for _ in range(2):
    writer = writers.JsonlWriter(str(path))
    writer.write(1, {"a": 1})
    writer.close()
  assert _steps(path) == [1]


def test_a_line_is_on_disk_at_once(tmp_path):
  writer = writers.JsonlWriter(str(tmp_path / "metrics.jsonl"))
  writer.write(1, {"a": 1})
  assert _steps(tmp_path / "metrics.jsonl") == [1]
  writer.close()


def test_open_writers_writes_both(tmp_path):
  pytest.importorskip("tensorboardX")
  writer = writers.open_writers(str(tmp_path))
  writer.write(1, {"train/loss": 0.5})
  writer.close()
  assert _steps(tmp_path / "metrics.jsonl") == [1]
  assert any(file.name.startswith("events") for file in (tmp_path / "tensorboard").iterdir())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_refuses_tensorboard_s_events_is_an_error_and_no_wait_for_good(tmp_path):
  pytest.importorskip("tensorboardX")
  writer = writers.TensorboardWriter(str(tmp_path))

  def refuse(*_):
    raise OSError(28, "No space left on device")

  writer._writer.file_writer.event_writer._ev_writer.write_event = refuse
  writer.write(1, {"a": 1})
  writer._thread.join(60)
  for step in range(2, 30):  # more than its queue holds
    with pytest.raises(OSError, match="events cannot be written"):
      writer.write(step, {"a": 1})
  writer.close()


def test_without_tensorboard_there_are_still_lines(tmp_path, monkeypatch, caplog):
  monkeypatch.setitem(sys.modules, "tensorboardX", None)
  with pytest.raises(ImportError, match=r"pip install 'gr4ad_jax\[log\]'"):
    writers.TensorboardWriter(str(tmp_path))
  with caplog.at_level("INFO"):
    writer = writers.open_writers(str(tmp_path))
  writer.write(1, {"a": 1})
  writer.close()
  assert _steps(tmp_path / "metrics.jsonl") == [1] and "gr4ad_jax[log]" in caplog.text


def test_other_processes_write_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(writers.jax, "process_index", lambda: 1)
  writer = writers.open_writers(str(tmp_path))
  writer.write(1, {"a": 1})
  writer.close()
  assert not list(tmp_path.iterdir())
