"""A run in a bucket: whole at every kill, one job's at a time, and nobody's work is lost."""

import logging
import pathlib
import threading

import pytest

from gr4ad_jax import files
from gr4ad_jax.checksums import DamagedError
from gr4ad_jax.config import ConfigError
from gr4ad_jax.remote import claims, pointer, snapshot
from gr4ad_jax.remote.store import Store
from tests.remote import buckets
from tests.remote.buckets import URL, Killed


def _begun(machines, name="a"):
  """The first state, sent by a job that has ended."""
  job = machines.mirror(name)
  job.take()
  buckets.first(job.folder)
  assert job.push()
  job.release()
  return buckets.content(job.folder)


def _killed(machines, left):
  """A job on the first machine that goes on to the second state; killed before a write."""
  job = machines.mirror("a", left)
  try:
    job.take()
    buckets.second(job.folder)
    job.push()
    job.release()
  except Killed:
    if job.claim:  # the kernel gives a killed process' locks free
      job._training.close()
    return job, True
  return job, False


def test_a_reader_sees_one_of_two_whole_states_wherever_the_writer_is_killed(
  machines, in_memory, tmp_path
):
  old = _begun(machines)
  begun = dict(in_memory.store)
  job, killed = _killed(machines, None)
  new = buckets.content(job.folder)
  assert not killed and job._store.writes > 10
  assert set(old) - set(new) and set(new) - set(old)  # a checkpoint came and another went
  outcomes = []
  for left in range(job._store.writes):
    in_memory.store.clear()
    in_memory.store.update(begun)
    pathlib.Path(tmp_path / "a").rename(tmp_path / f"before{left}")  # the first machine, anew
    machines.mirror("a").pull()
    at = machines.mirror("a")
    at.bring(f"{at.folder}/checkpoints/2", ("params", "opt_state"))
    _, killed = _killed(machines, left)
    assert killed
    found = buckets.seen(machines, f"reader{left}")
    assert found in (old, new), left
    outcomes.append(found == new)
    # Another machine takes over and sends what it makes; nothing of the killed job is left.
    other = machines.mirror(f"other{left}")
    other.take()
    buckets.write_step(other.folder, 6, "third")
    other.push()
    other.release()
    assert buckets.objects() == buckets.listed()
    assert sum("checkpoints/6/" in name for name in buckets.listed()) == 5
  assert outcomes == sorted(outcomes)  # the pointer's write decides, once
  assert {False, True} == set(outcomes)


def test_the_same_machine_goes_on_from_what_it_had_not_sent(machines, in_memory, tmp_path):
  _begun(machines)
  begun = dict(in_memory.store)
  job, _ = _killed(machines, None)
  new = buckets.content(job.folder)
  for left in range(4, job._store.writes):  # from where the second state lies on its disk
    in_memory.store.clear()
    in_memory.store.update(begun)
    pathlib.Path(tmp_path / "a").rename(tmp_path / f"before{left}")
    at = machines.mirror("a")
    at.pull()
    at.bring(f"{at.folder}/checkpoints/2", ("params", "opt_state"))
    job, _ = _killed(machines, left)
    if not pathlib.Path(job.folder, "checkpoints", "4").exists():
      continue
    pathlib.Path(job.folder, "metrics.jsonl").write_text("2\n4\n5\n")  # written after the last push
    again = machines.mirror("a")
    again.take()
    found = buckets.content(again.folder)
    assert {**new, "metrics.jsonl": "2\n4\n5\n"}.items() <= found.items(), left
    again.push()
    again.release()
  assert job is not None


def test_only_what_is_read_is_fetched(machines):
  _begun(machines)
  reader = machines.mirror("b")
  assert reader.pull()
  arrays = [name for name in buckets.content(reader.folder) if snapshot.is_array(name)]
  assert arrays == []
  reader.bring(f"{reader.folder}/checkpoints/2", ("params",))
  arrays = [name for name in buckets.content(reader.folder) if snapshot.is_array(name)]
  assert arrays == ["checkpoints/2/params/a"]


def test_a_second_job_is_refused_while_the_first_one_lives(machines, monkeypatch):
  monkeypatch.setattr(claims, "here", lambda: "")  # as from different machines
  job = machines.mirror("a")
  job.renewed = 0.02
  job.take()
  second = machines.mirror("b")
  second.dead = 60.0
  with pytest.raises(ConfigError, match=r"another job is training the run in it \(process \d+ on"):
    second.take()
  buckets.first(job.folder)
  assert job.push()
  job.release()
  second.take()  # free at once
  second.release()


def test_a_second_job_on_the_same_machine_is_refused_at_once(machines):
  job = machines.mirror("a")
  job.take()
  with pytest.raises(ConfigError, match="another process is training the run"):
    machines.mirror("a").take()
  job.release()


def test_a_job_that_was_taken_for_dead_can_write_no_state(machines, monkeypatch):
  monkeypatch.setattr(claims, "here", lambda: "")
  job = machines.mirror("a")
  job.take()
  buckets.first(job.folder)
  job.push()
  other = machines.mirror("b")
  other.take()  # it sees no sign of life for long enough
  buckets.second(other.folder)
  other.push()
  expected = buckets.seen(machines, "c")
  buckets.write_step(job.folder, 8, "late")
  with pytest.raises(ConfigError, match=f"--workdir={URL} is this job's no longer"):
    job.push()
  job.release()
  assert buckets.seen(machines, "d") == expected
  assert "checkpoints/8/params/a" in buckets.content(job.folder)
  other.release()


def test_of_two_writers_of_one_number_one_succeeds(in_memory):
  store = Store(URL, patience=0)
  before = pointer.latest(store)
  assert pointer.write(store, pointer.following(before, claim="one"))
  assert not pointer.write(store, pointer.following(before, claim="two"))
  assert pointer.latest(store).claim == "one"
  # A number that is free again since it was passed long ago does not count.
  for claim in ("three", "four"):
    assert pointer.write(store, pointer.following(pointer.latest(store), claim=claim))
  pointer.forget_older(store, pointer.latest(store))
  assert not pointer.write(store, pointer.following(before, claim="late"))
  assert pointer.latest(store).claim == "four"


def test_an_evaluation_beside_a_training_keeps_its_report(machines):
  _begun(machines)
  job = machines.mirror("a")
  job.take()
  reader = machines.mirror("b")
  reader.pull()
  files.write_json(f"{reader.folder}/eval/metrics.json", {"recall": 0.5}, summed=False)
  pathlib.Path(reader.folder, "metrics.jsonl").write_text("not its own\n")
  assert reader.push()
  buckets.second(job.folder)
  assert job.push()
  job.release()
  found = buckets.seen(machines, "c")
  assert found["eval/metrics.json"] == '{"recall": 0.5}\n'
  assert found["metrics.jsonl"] == "2\n4\n" and "checkpoints/4/params/a" in found
  # The job that trained gets the report, too, when it next begins.
  again = machines.mirror("a")
  again.pull()
  assert "eval/metrics.json" in buckets.content(again.folder)


def test_what_another_job_went_past_is_set_aside(machines, caplog):
  _begun(machines)
  late = machines.mirror("a")
  buckets.write_step(late.folder, 3, "never sent")
  other = machines.mirror("b")
  other.take()
  buckets.second(other.folder)
  other.push()
  other.release()
  with caplog.at_level(logging.WARNING):
    late.pull()
  assert "another job went on with this run, or it was deleted" in caplog.text
  steps = {path.name for path in pathlib.Path(late.folder, "checkpoints").iterdir()}
  assert steps == {"4"}
  aside = pathlib.Path(late.folder).parent / "overtaken" / "checkpoints" / "3" / "params" / "a"
  assert aside.read_text() == "never sent params/a 3"


def test_a_damaged_object_is_named_and_nothing_half_is_left(machines, in_memory):
  _begun(machines)
  (path,) = [path for path in in_memory.store if "metrics/metrics" in path]
  in_memory.pipe_file(path, b"other")
  reader = machines.mirror("b")
  with pytest.raises(DamagedError, match=r"checkpoints/2/metrics/metrics.*is damaged"):
    reader.pull()
  assert buckets.content(reader.folder) == {}
  in_memory.rm_file(path)
  with pytest.raises(DamagedError, match=r"is damaged: .*metrics/metrics.*no such object"):
    reader.pull()


def test_a_damaged_pointer_is_named(machines, in_memory):
  _begun(machines)
  (path,) = [path for path in in_memory.store if "/state/" in path]
  in_memory.pipe_file(path, b"{}")
  with pytest.raises(DamagedError, match=r"state/0+2\.json is damaged: no pointer of a run"):
    machines.mirror("b").pull()


def test_a_file_that_is_not_what_was_written_is_not_sent(machines):
  before = _begun(machines)
  job = machines.mirror("a")
  job.take()
  pathlib.Path(job.folder, "features", "names.json").write_text('["two"]\n')
  with pytest.raises(DamagedError, match="names.json is damaged"):
    job.push()
  job.release()
  assert buckets.seen(machines, "b") == before


def test_a_job_that_wrote_nothing_leaves_nothing(machines, in_memory):
  job = machines.mirror("a")
  job.take()
  assert in_memory.store
  assert not job.push()
  job.release()
  assert not in_memory.store


def test_a_run_that_was_deleted_in_the_bucket_is_gone_here_too(machines, in_memory):
  _begun(machines)
  reader = machines.mirror("b")
  assert reader.pull()
  in_memory.store.clear()
  assert not reader.pull()
  assert buckets.content(reader.folder) == {}


def test_a_checkpoint_that_is_deleted_while_it_is_sent_is_sent_whole(machines, monkeypatch):
  _begun(machines)
  job = machines.mirror("a")
  job.take()
  buckets.write_step(job.folder, 4, "slow")
  true = Store.put
  lock = threading.Lock()
  done = []

  def put(self, path, name, told):
    with lock:
      if not done:
        done.append(buckets.remove_step(job.folder, 4))  # training was faster
        buckets.write_step(job.folder, 6, "newer")
    true(self, path, name, told)

  monkeypatch.setattr(Store, "put", put)
  assert job.push()
  steps = {name.split("/")[1] for name in buckets.seen(machines, "b") if "checkpoints/" in name}
  assert steps == {"2", "4"}
  assert job.push()
  steps = {name.split("/")[1] for name in buckets.seen(machines, "c") if "checkpoints/" in name}
  assert steps == {"2", "6"} and buckets.objects() == buckets.listed()
  job.release()


def test_what_was_sent_in_vain_goes_with_the_next_state(machines, monkeypatch):
  _begun(machines)
  job = machines.mirror("a")
  job.take()
  buckets.second(job.folder)

  def away(*_):
    raise OSError("away")

  with monkeypatch.context() as patch:
    patch.setattr(pointer, "write", away)
    with pytest.raises(OSError, match="away"):
      job.push()
  assert buckets.objects() - buckets.listed()
  pathlib.Path(job.folder, "metrics.jsonl").write_text("2\n4\n6\n")
  assert job.push()
  assert buckets.objects() == buckets.listed()
  job.release()


def test_a_job_that_only_reads_asks_the_bucket_nothing_at_its_end(machines, monkeypatch):
  _begun(machines)
  reader = machines.mirror("b")
  reader.pull()
  pathlib.Path(reader.folder, "metrics.jsonl").write_text("not its own\n")

  def away(*_):
    raise OSError("away")

  monkeypatch.setattr(Store, "entries", away)
  assert not reader.push()
  files.write_json(f"{reader.folder}/eval/metrics.json", {}, summed=False)
  with pytest.raises(OSError, match="away"):
    reader.push()


def test_a_checkpoint_that_made_room_meanwhile_is_told(machines):
  _begun(machines)
  reader = machines.mirror("b")
  reader.pull()
  _killed(machines, None)
  with pytest.raises(FileNotFoundError, match="checkpoint 2 made room for a newer one"):
    reader.bring(f"{reader.folder}/checkpoints/2", ("params",))
  assert reader.pull()
  assert not pathlib.Path(reader.folder, "checkpoints", "2").exists()
