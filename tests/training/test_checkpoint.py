"""What is kept, what comes back, and what is said when it does not fit."""

import json
import logging
import resource

import jax
import numpy as np
import pytest

from gr4ad_jax.checksums import DamagedError
from gr4ad_jax.config import ConfigError
from gr4ad_jax.training.checkpoint import Checkpointer
from gr4ad_jax.training.state import abstract
from tests.training import toy


def _at(state, step, value):
  params = jax.tree.map(lambda p: p * 0 + value, state.params)
  return state.replace(step=state.step * 0 + step, params=params)


def _same(a, b):
  return all(
    np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


@pytest.fixture(scope="module")
def state():
  return toy.setup(10)[0]


def test_last_two_and_best_are_kept(tmp_path, state):
  scores = {1: 0.1, 2: 0.9, 3: None, 4: float("nan"), 5: 0.3}
  with Checkpointer(str(tmp_path), best_metric="recall") as checkpointer:
    for step, score in scores.items():
      metrics = None if score is None else {"recall": score}
      checkpointer.save(
        _at(state, step, step), data={"next_step": step}, metadata={"note": "x"}, metrics=metrics
      )
    checkpointer.wait()
    assert checkpointer.steps == [2, 4, 5] and checkpointer.best_step == 2
  with Checkpointer(str(tmp_path), best_metric="recall", read_only=True) as reader:
    restored = reader.restore(state, "last")
    assert int(restored.state.step) == 5 and _same(restored.state, _at(state, 5, 5))
    assert (restored.data, restored.metadata) == ({"next_step": 5}, {"note": "x"})
    assert _same(reader.restore_params(state.params), _at(state, 2, 2).params)
    assert _same(reader.restore_params(state.params, 4), _at(state, 4, 4).params)


def test_what_makes_room_goes_at_once_and_is_deleted_then(tmp_path, state, monkeypatch):
  """A kill while files are deleted leaves no half checkpoint, and the next start goes on."""
  with monkeypatch.context() as patch:
    # Nothing is deleted, as where the process dies then.
    patch.setattr("shutil.rmtree", lambda *_, **__: None)
    with Checkpointer(str(tmp_path)) as checkpointer:
      for step in (1, 2, 3):
        checkpointer.save(_at(state, step, step), data={})
  (tmp_path / "deleted" / "1" / "_CHECKPOINT_METADATA").unlink()
  with Checkpointer(str(tmp_path), read_only=True) as reader:
    assert reader.steps == [2, 3]
  assert (tmp_path / "deleted" / "1").is_dir()  # a reader deletes nothing
  with Checkpointer(str(tmp_path)) as checkpointer:
    checkpointer.save(_at(state, 4, 4), data={})
    checkpointer.wait()
    assert checkpointer.steps == [3, 4] and not (tmp_path / "deleted").exists()


def test_best_is_the_last_where_none_was_evaluated(tmp_path, state):
  with Checkpointer(str(tmp_path), best_metric="recall") as checkpointer:
    for step in (1, 2):
      checkpointer.save(_at(state, step, step), data={})
    checkpointer.wait()
    assert checkpointer.best_step is None
    assert _same(checkpointer.restore_params(state.params, "best"), _at(state, 2, 2).params)


def test_restore_is_bitwise_and_into_the_given_shardings(tmp_path):
  state, step, batch_at = toy.setup(10)
  for number in range(3):
    state, _ = step(state, batch_at(number))
  with Checkpointer(str(tmp_path)) as checkpointer:
    checkpointer.save(state, data={"next_step": 3})
    checkpointer.wait()
    restored = checkpointer.restore(abstract(state)).state
  assert jax.tree.structure(restored) == jax.tree.structure(state) and _same(restored, state)
  assert jax.tree.map(lambda a: (a.sharding, a.dtype), restored) == jax.tree.map(
    lambda a: (a.sharding, a.dtype), state
  )


def test_a_saved_step_is_left_as_is(tmp_path, state):
  with Checkpointer(str(tmp_path)) as checkpointer:
    checkpointer.save(_at(state, 1, 1), data={})
    checkpointer.save(_at(state, 1, 2), data={})
    assert _same(checkpointer.restore(state).state.params, _at(state, 1, 1).params)


def test_what_does_not_fit_is_told_in_one_line(tmp_path, state):
  with pytest.raises(FileNotFoundError, match="absent is missing"):
    Checkpointer(str(tmp_path / "absent"), read_only=True)
  assert not (tmp_path / "absent").exists()
  with Checkpointer(str(tmp_path)) as checkpointer:
    with pytest.raises(FileNotFoundError, match="no whole checkpoint"):
      checkpointer.restore(state)
    checkpointer.save(_at(state, 3, 1), data={})
    checkpointer.wait()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 7; it has \[3\]"):
      checkpointer.restore(state, 7)
    for other in (toy.setup(10, width=12)[0].params, {"another": state.params["Dense_0"]["bias"]}):
      with pytest.raises(ValueError, match="holds another model") as error:
        checkpointer.restore_params(other)
      assert "\n" not in str(error.value)


def test_parameters_that_are_not_finite_are_refused(tmp_path, state):
  params = jax.tree.map(lambda p: p.at[-1].set(np.nan) if p.ndim == 1 else p, state.params)
  with Checkpointer(str(tmp_path)) as checkpointer:
    checkpointer.save(state.replace(step=state.step * 0 + 1, params=params), data={})
    for restore in (
      lambda: checkpointer.restore(state),
      lambda: checkpointer.restore_params(state.params, 1),
    ):
      with pytest.raises(ConfigError, match=f"{tmp_path}/1 holds numbers that are not finite"):
        restore()


def _flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 16
  path.write_bytes(bytes(content))


@pytest.mark.parametrize(
  "name",
  [
    "params/_METADATA",
    "opt_state/ocdbt.process_0/manifest.ocdbt",
    "metrics/metrics",
    "data/metadata",
    "_CHECKPOINT_METADATA",
    "SHA256SUMS",
  ],
)
def test_what_is_read_is_compared_with_its_checksum(tmp_path, state, name):
  with Checkpointer(str(tmp_path), best_metric="recall") as checkpointer:
    checkpointer.save(_at(state, 1, 1), data={}, metrics={"recall": 0.5})
  _flip(tmp_path / "1" / name)
  with pytest.raises(DamagedError, match=f"{tmp_path}/1/{name} is damaged|{name}") as error:
    with Checkpointer(str(tmp_path), best_metric="recall", read_only=True) as reader:
      if name.startswith("opt_state"):  # who takes the parameters alone does not read it
        assert _same(reader.restore_params(state.params), _at(state, 1, 1).params)
      reader.restore(state)
  assert "\n" not in str(error.value)


def test_an_older_checkpoint_is_restored_with_one_warning(tmp_path, state, caplog):
  with Checkpointer(str(tmp_path / "checkpoints")) as checkpointer:
    for step in (1, 2):
      checkpointer.save(_at(state, step, step), data={})
  for step in (1, 2):
    (tmp_path / "checkpoints" / str(step) / "SHA256SUMS").unlink()
  with caplog.at_level("WARNING"), Checkpointer(str(tmp_path / "checkpoints")) as checkpointer:
    assert _same(checkpointer.restore(state).state, _at(state, 2, 2))
  assert [text for text in caplog.messages if "without checksums" in text] == [
    (
      f"{tmp_path} has files without checksums (it is older than they are): damage to them stays "
      "unnoticed"
    )
  ]


def test_an_empty_folder_is_no_checkpoint_and_other_names_are_none(tmp_path, state):
  for name in ("²", "x5", "5.tmp"):
    (tmp_path / name).mkdir()
  with Checkpointer(str(tmp_path)) as checkpointer:
    assert checkpointer.steps == []
  (tmp_path / "5").mkdir()
  with pytest.raises(DamagedError, match=f"{tmp_path}/5 is no whole checkpoint"):
    Checkpointer(str(tmp_path))


def test_a_disk_that_refuses_is_an_os_error(tmp_path, state, monkeypatch):
  with Checkpointer(str(tmp_path)) as checkpointer:
    for reason, kind in (
      ("RESOURCE_EXHAUSTED: [No space left on device]\nat x.cc", OSError),
      ("a bug", ValueError),
    ):

      def refuse(reason=reason):
        raise ValueError(reason)

      with monkeypatch.context() as patched:
        patched.setattr(checkpointer._manager, "wait_until_finished", refuse)
        with pytest.raises(kind) as error:
          checkpointer.wait()
      assert isinstance(error.value, OSError) == (kind is OSError)
      assert (
        kind is not OSError or "\n" not in str(error.value) and "No space left" in str(error.value)
      )


def test_a_checkpoint_is_plain_about_its_position(tmp_path, state):
  with Checkpointer(str(tmp_path)) as checkpointer:
    checkpointer.save(_at(state, 4, 1), data={"next_step": 4})
  assert json.loads((tmp_path / "4" / "data" / "metadata").read_text()) == {"next_step": 4}


def test_a_disk_that_refuses_is_told_once_and_without_a_traceback(tmp_path, state, monkeypatch):
  """Orbax logs the traceback of each of its threads; who waits is raised the reason."""
  told = logging.Handler()
  lines = []
  monkeypatch.setattr(told, "emit", lines.append)
  log = logging.getLogger("absl")
  log.addHandler(told)
  params = {"w": jax.random.normal(jax.random.key(0), (300, 300))}
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # bytes of a file
  try:
    with pytest.raises(OSError, match="a checkpoint cannot be saved") as error:
      with Checkpointer(str(tmp_path)) as checkpointer:
        checkpointer.save(state.replace(params=params), data={})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.removeHandler(told)
  assert "\n" not in str(error.value)
  assert not [record for record in lines if record.levelno >= logging.ERROR]
