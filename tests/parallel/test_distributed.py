"""The roll call names who is missing or differs; barriers hold; the loss of a process is told to
all.
"""

import contextlib
import queue
import socket
import threading
import time

import pytest

from gr4ad_jax.parallel import distributed, roll_call
from gr4ad_jax.parallel.roll_call import Job, StartError


@pytest.fixture
def port():
  with socket.create_server(("127.0.0.1", 0)) as server:
    return server.getsockname()[1]


@pytest.fixture(autouse=True)
def no_jax(monkeypatch):
  """Threads stand for processes here: each has a link of its own, and JAX is not started."""
  monkeypatch.setattr(distributed.jax.distributed, "initialize", lambda *args, **kwargs: None)
  monkeypatch.setattr(distributed, "_FAREWELL", 0.1)


def _call(
  port, numbers, processes=3, timeout=20.0, settings=lambda number: "the same", waiting=None
):
  """Starts the given processes together: number -> its link, or what it raised; and what each
  heard of losses.
  """
  found, lost = {}, queue.Queue()

  def one(number):
    job = Job(f"127.0.0.1:{port}", processes, number)
    try:
      about = {
        "process": number, "processes": processes, "settings": settings(number),
        "host": f"host{number}",
      }  # fmt: skip
      if number == 0:
        told = waiting.append if waiting is not None else lambda text: None
        peers = roll_call.RollCall(job, port, about, told).run(time.monotonic() + timeout)
      else:
        peers = {0: roll_call.answer("127.0.0.1", port, about, timeout)}
      found[number] = distributed._Link(job, peers, lambda reason: lost.put((number, reason)))
    except StartError as error:
      found[number] = error

  threads = [threading.Thread(target=one, args=(number,)) for number in numbers]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(timeout + 10)
    assert not thread.is_alive()
  return [found[number] for number in numbers], lost


def _heard(lost, count):
  return dict(lost.get(timeout=5) for _ in range(count))


def test_all_there_and_barriers_hold_until_the_last_has_come(port):
  links, _ = _call(port, [2, 1, 0])
  passed = []

  def through(link, name):
    link.barrier(name)
    passed.append(name)

  for name in ("a", "b", "a"):  # a name may be used again
    early = [threading.Thread(target=through, args=(link, name)) for link in links[:2]]
    for thread in early:
      thread.start()
    time.sleep(0.2)
    assert not passed
    links[2].barrier(name)
    for thread in early:
      thread.join(5)
    assert passed == [name, name]
    passed.clear()


@pytest.mark.parametrize(
  ("numbers", "missing"),
  [([0, 2], "process 1 of 3 did not come to 127.0.0.1"), ([0], "processes 1, 2 of 3 did not come")],
)
def test_missing_processes_are_named_to_all_that_came(port, numbers, missing):
  found, _ = _call(port, numbers, timeout=3.0)
  for error in found:
    assert (
      isinstance(error, StartError) and missing in str(error) and "--start_timeout" in str(error)
    )


def test_without_process_0_the_others_say_so(port):
  (error,), _ = _call(port, [1], timeout=0.5)
  assert f"process 0 is missing: no answer at 127.0.0.1:{port}" in str(error)


def test_other_flags_are_refused(port):
  found, _ = _call(port, [0, 1], processes=2, settings=lambda number: str(number))
  assert {str(error) for error in found} == {
    "process 1 on host1 was started with other flags than process 0"
  }


@pytest.mark.parametrize(
  ("about", "reason"),
  [
    ({"process": 0, "processes": 3}, "process 0 is there twice, on host0 and on elsewhere"),
    ({"process": 5, "processes": 3}, "process 5"),
  ],
)
def test_a_process_that_does_not_belong_is_refused(port, about, reason):
  with pytest.raises(StartError, match=reason), contextlib.ExitStack() as stack:

    def stranger():
      with contextlib.suppress(StartError):
        roll_call.answer("127.0.0.1", port, {"settings": "", "host": "elsewhere"} | about, 5)

    thread = threading.Thread(target=stranger)
    stack.callback(thread.join)
    thread.start()
    own = {"process": 0, "processes": 3, "settings": "", "host": "host0"}
    roll_call.RollCall(Job(f"127.0.0.1:{port}", 3, 0), port, own, lambda text: None).run(
      time.monotonic() + 5
    )


def test_what_is_no_process_of_ours_is_ignored(port):
  def scanner():
    with contextlib.suppress(OSError):
      time.sleep(0.2)
      with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert connection.recv(100) == b""

  threading.Thread(target=scanner).start()
  found, _ = _call(port, [0], timeout=1.0)
  assert "processes 1, 2 of 3 did not come" in str(found[0])


@pytest.mark.parametrize(
  "line",
  [
    b"[" * 60_000,  # Python's JSON goes too deep in it
    b"[]",
    b"7",
    b'{"process": 1}',
    b'{"process": Infinity, "processes": 3}',
    b'{"process": [1], "processes": 3}',
    b'{"process": "' + b"1" * 5000 + b'", "processes": 3}',
    b"\xff\xfe",
  ],
)
def test_no_strangers_line_ends_the_roll_call(port, line):
  said = []

  def stranger():
    with contextlib.suppress(OSError):
      time.sleep(0.2)
      with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(line + b"\n")
        said.append(connection.recv(100))

  thread = threading.Thread(target=stranger)
  thread.start()
  found, _ = _call(port, [0], timeout=1.0)
  thread.join()
  assert isinstance(found[0], StartError) and "processes 1, 2 of 3 did not come" in str(found[0])
  assert said in ([b""], [])  # closed, or reset as not all of it was read


def test_a_process_of_a_larger_job_is_refused_and_this_job_starts_all_the_same(port):
  told = []
  reason = "process 1 on elsewhere was started as one of 4, process 0 as one of 2"

  def stranger():
    about = {"process": 1, "processes": 4, "settings": "", "host": "elsewhere"}
    try:
      roll_call.answer("127.0.0.1", port, about, 5)
    except StartError as error:
      told.append(str(error))

  own = {"process": 0, "processes": 2, "settings": "", "host": "host0"}
  heard = []
  call = roll_call.RollCall(Job(f"127.0.0.1:{port}", 2, 0), port, own, heard.append)
  with contextlib.ExitStack() as stack:

    def second():
      thread = threading.Thread(target=stranger)
      thread.start()
      thread.join()  # it has been refused before ours comes
      roll_call.answer("127.0.0.1", port, own | {"process": 1, "host": "host1"}, 5)

    thread = threading.Thread(target=second)
    stack.callback(thread.join)
    thread.start()
    assert list(call.run(time.monotonic() + 10)) == [1]
  assert told == [reason] and heard == [f"{reason}: it is refused"]


def test_who_was_refused_is_named_where_processes_are_missing(port):
  def stranger():
    with contextlib.suppress(StartError):
      about = {"process": 1, "processes": 4, "settings": "", "host": "elsewhere"}
      roll_call.answer("127.0.0.1", port, about, 5)

  thread = threading.Thread(target=stranger)
  thread.start()
  own = {"process": 0, "processes": 2, "settings": "", "host": "host0"}
  call = roll_call.RollCall(Job(f"127.0.0.1:{port}", 2, 0), port, own, lambda text: None)
  with pytest.raises(
    StartError, match=r"^process 1 of 2 did not come .*; process 1 on elsewhere .* as one of 4"
  ):
    call.run(time.monotonic() + 3)
  thread.join()


def test_a_port_that_is_taken_is_named():
  with socket.create_server(("", 0)) as taken:
    port = taken.getsockname()[1]
    own = {"process": 0, "processes": 2, "settings": "", "host": "host0"}
    with pytest.raises(StartError, match=f"process 0 cannot listen on port {port}"):
      roll_call.RollCall(Job(f"127.0.0.1:{port}", 2, 0), port, own, lambda text: None).run(
        time.monotonic() + 1
      )


def test_a_lost_process_is_named_to_all(port):
  links, lost = _call(port, [0, 1, 2])
  links[1]._peers[0].socket.shutdown(
    socket.SHUT_RDWR
  )  # as the kernel does when a process is killed
  heard = _heard(lost, 3)
  assert (
    heard[0]
    == heard[2]
    == "process 1 on host1 is gone (the same command goes on from the last checkpoint)"
  )
  assert heard[1].startswith("process 0 on ")


def test_a_failure_is_told_with_its_status(port):
  links, lost = _call(port, [0, 1, 2])
  links[2].fail(2)
  assert _heard(lost, 2) == {
    0: "process 2 failed with status 2",
    1: "process 2 failed with status 2",
  }


def test_after_the_end_nobody_is_missed(port):
  links, lost = _call(port, [0, 1], processes=2)
  ends = [threading.Thread(target=link.barrier, args=("end",)) for link in links]
  for thread in ends:
    thread.start()
  for thread in ends:
    thread.join(5)
  for link in links:
    link.close()
  links[1]._peers[0].socket.close()
  time.sleep(1.2)
  assert lost.empty()


def test_one_process_alone_waits_for_nobody(monkeypatch):
  monkeypatch.setattr(
    distributed.jax.distributed, "shutdown", lambda: pytest.fail("there is no job")
  )
  distributed.barrier("anything")
  distributed.finish(0)
  distributed.finish(2)
  assert (
    distributed.share(5).tolist() == [0, 1, 2, 3, 4]
    and distributed.agreed(True)
    and not distributed.agreed(False)
  )


def test_a_server_that_is_not_process_0_is_waited_out(port):
  """As the server of a job that is ending, where the next one starts on the same port."""

  def old_job():
    with socket.create_server(("127.0.0.1", port)) as server:
      server.accept()[0].close()

  old = threading.Thread(target=old_job)
  old.start()
  time.sleep(0.2)
  found = []
  caller = threading.Thread(
    target=lambda: found.extend(_call(port, [1], processes=2, timeout=8)[0])
  )
  caller.start()
  old.join(5)
  (first,), _ = _call(port, [0], processes=2, timeout=8)
  caller.join(10)
  assert isinstance(first, distributed._Link) and isinstance(found[0], distributed._Link)


def test_who_leaves_before_all_are_there_is_missing_and_may_come_again(port):
  links = []
  first = threading.Thread(target=lambda: links.extend(_call(port, [0], processes=3, timeout=8)[0]))
  first.start()
  time.sleep(0.3)
  peer = roll_call.Peer(socket.create_connection(("127.0.0.1", port)))
  peer.send(process=1, processes=3, settings="the same", host="host1")
  assert peer.messages() == [{"here": True}]
  peer.socket.close()
  others, _ = _call(port, [1, 2], timeout=8)
  first.join(10)
  assert all(isinstance(link, distributed._Link) for link in [*links, *others])
