"""`make mutants`: would the tests notice a fault?

Small faults are put into the code, one at a time, and each time the room's own tests are run.

A mutant that no test notices has *survived*. `survivors.toml` says of each known one why. An
*equivalent* one computes the same, and is not counted. The sample, the trees and the results lie in
--out: the same command goes on after a stop.
"""

import concurrent.futures
import logging
import multiprocessing
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib

from absl import app, flags
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import WorkDB
from cosmic_ray.work_item import TestOutcome, WorkItem, WorkResult

from tests.mutation import mutants

ROOMS = (
  "objectives", "models", "decoding", "sid", "index", "evaluation", "features", "data",
)  # fmt: skip
# Rooms whose code is held by the tests of another room as well.
ALSO = {"models": ("zoo",), "data": ("reading",)}
HERE = pathlib.Path(__file__).parent
LEAST = 0.95  # share of the mutants that count which must be killed

ROOMS_FLAG = flags.DEFINE_list("rooms", list(ROOMS), "Rooms of gr4ad_jax whose code is changed.")
SIZE = flags.DEFINE_integer("per_room", 60, "Mutants of a room.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the sample.")
TREES = flags.DEFINE_integer("trees", 2, "Copies of the checkout to run tests in.", lower_bound=1)
TIMEOUT = flags.DEFINE_integer("timeout", 600, "Seconds after which tests count as failed.")
OUT = flags.DEFINE_string("out", "runs/mutants", "Where samples, trees and results lie.")
LONG = flags.DEFINE_bool("long", False, "Try what survives on the room's long tests as well.")
RETEST = flags.DEFINE_bool(
  "retest", False, "Try again what survived an earlier call, or ran out of time."
)


def session(room: str, out: pathlib.Path) -> WorkDB:
  """The sample of a room, with results; drawn where there is none for this code, size and seed."""
  paths = sorted(pathlib.Path("gr4ad_jax", room).rglob("*.py"))
  name = f"{room}-{SIZE.value}-{SEED.value}-{mutants.digest(paths)}.sqlite"
  if not (out / name).exists():
    everything = [mutant for path in paths for mutant in mutants.of_module(path)]
    chosen = mutants.sample(everything, SIZE.value, SEED.value)
    fresh = WorkDB(out / "new.sqlite", WorkDB.Mode.create)
    fresh.clear()
    items = [WorkItem.single(f"{room}-{i:04d}", mutant) for i, mutant in enumerate(chosen)]
    fresh.add_work_items(items)
    fresh.close()
    os.replace(out / "new.sqlite", out / name)
  return WorkDB(out / name, WorkDB.Mode.open)


def command(room: str, module: pathlib.Path | None = None, kind: str = "not long") -> str:
  """pytest on the room's tests, those nearest to the changed file first: most end there.

  `kind` is pytest's -m: "not long", or "long".
  """
  rooms = (room, *ALSO.get(room, ()))
  files = [
    path for name in rooms for path in sorted(pathlib.Path("tests", name).rglob("test_*.py"))
  ]
  if module is not None:
    files.sort(key=lambda path: _distance(path, module))
  plain = f"-q -x --no-header -p no:cacheprovider -m '{kind}'"
  return f"{sys.executable} -m pytest {plain} {' '.join(map(str, files))}"


def _distance(test: pathlib.Path, module: pathlib.Path) -> tuple[bool, bool, bool]:
  """False comes first: named after the module, then importing it, then in the same folder."""
  named = module.stem in test.stem
  imported = re.search(rf"\b{module.stem}\b", test.read_text()) is not None
  beside = test.parent.parts[1:] == module.parent.parts[1:]
  return not named, not imported, not beside


def copy_tree(to: pathlib.Path) -> None:
  """A copy of what git tracks or would track, as it is in the working tree."""
  shutil.rmtree(to, ignore_errors=True)
  tracked = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
  names = subprocess.run(tracked, capture_output=True, check=True).stdout.decode().split("\0")
  for name in filter(None, names):
    if os.path.isfile(name):
      (to / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy2(name, to / name)


def enter(trees) -> None:
  """Makes a worker process live in a tree of its own, the next of a queue."""
  os.chdir(trees.get())


def try_one(room: str, item: WorkItem) -> WorkResult:
  """Runs in a worker: changes the file, runs the tests, puts the file back."""
  module = item.mutations[0].module_path
  result = mutate_and_test(item.mutations, command(room, module), TIMEOUT.value)
  if not LONG.value or result.test_outcome != TestOutcome.SURVIVED:
    return result
  # What a quick test lets through, one of those that `make test-all` adds may notice. Status 5 says
  # that there is none.
  tests = shlex.quote(f"{command(room, module, 'long')} || [ $? = 5 ]")
  return mutate_and_test(item.mutations, f"sh -c {tests}", TIMEOUT.value)


def check_green(room: str) -> float:
  """Runs in a worker: seconds of the room's tests on the code as it is. Raises where they fail."""
  begin = time.monotonic()
  ran = subprocess.run(command(room), shell=True, capture_output=True, text=True)
  if ran.returncode:
    raise RuntimeError(f"tests/{room} fails on the code as it is:\n{ran.stdout[-2000:]}")
  return time.monotonic() - begin


def changed(result: WorkResult) -> str:
  """The line that a mutant changes, as `before => after`, without indents."""
  lines = [line for line in result.diff.splitlines() if not line.startswith(("---", "+++", "@@"))]
  before = " ".join(line[1:].strip() for line in lines if line.startswith("-"))
  after = " ".join(line[1:].strip() for line in lines if line.startswith("+"))
  return f"{before} => {after}"


def explained() -> dict[tuple[str, str], dict]:
  """Entries of survivors.toml by module and changed line."""
  entries = tomllib.loads((HERE / "survivors.toml").read_text()).get("survivor", [])
  return {(entry["module"], entry["change"]): entry for entry in entries}


def by_a_test(result: WorkResult) -> bool:
  """Whether a test failed. Where time was up instead, a busy machine may be the reason."""
  return result.test_outcome == TestOutcome.KILLED and result.output != "timeout"


def forget_survivors(work: WorkDB) -> None:
  """Makes survivors, and what ran out of time, pending again: the same sample, less its results."""
  tried = work.completed_work_items
  kept = [(item, result) for item, result in tried if by_a_test(result)]
  items = work.work_items
  work.clear()
  work.add_work_items(items)
  for item, result in kept:
    work.set_result(item.job_id, result)


def judge(room: str, work: WorkDB) -> tuple[int, int, list[str]]:
  """Mutants of a room that were killed, those that count, and lines on survivors without a
  reason.
  """
  known = explained()
  killed = counted = 0
  unexplained = []
  for item, result in work.completed_work_items:
    mutant = item.mutations[0]
    if result.test_outcome == TestOutcome.KILLED:
      killed += 1
      counted += 1
      continue
    change = changed(result)
    entry = known.get((str(mutant.module_path), change))
    counted += not (entry and entry["equivalent"])
    if entry is None:
      where = f"{mutant.module_path}:{mutant.start_pos[0]} {mutant.definition_name}"
      unexplained.append(f"  {where}\n    {change}")
  equivalent = work.num_results - counted
  late = killed - sum(by_a_test(result) for _, result in work.completed_work_items)
  print(
    f"{room}: {killed} of {counted} killed ({killed / max(counted, 1):.1%}), {late} of them by "
    f"--timeout, {equivalent} equivalent left out, {len(unexplained)} without a reason"
  )
  return killed, counted, unexplained


def try_all(sessions: dict[str, WorkDB], out: pathlib.Path) -> None:
  """Tries what has no result yet, in several trees at once, and keeps each result as it comes."""
  wanted = [(room, item) for room, work in sessions.items() for item in work.pending_work_items]
  rooms = list(dict.fromkeys(room for room, _ in wanted))
  if not wanted:
    return
  trees = [out / f"tree_{i}" for i in range(min(TREES.value, len(wanted)))]
  for tree in trees:
    copy_tree(tree)
  context = multiprocessing.get_context("fork")  # the workers read the flags
  places = context.SimpleQueue()
  for tree in trees:
    places.put(tree.absolute())
  with concurrent.futures.ProcessPoolExecutor(len(trees), context, enter, (places,)) as pool:
    # First of all, and in both trees: nothing can be told by tests that fail on the code as it is.
    for room, seconds in zip(rooms, pool.map(check_green, rooms), strict=True):
      print(f"tests/{room} pass on the code as it is, in {seconds:.0f} s", flush=True)
    begin = time.monotonic()
    tries = {pool.submit(try_one, room, item): (room, item) for room, item in wanted}
    for done, one in enumerate(concurrent.futures.as_completed(tries), 1):
      room, item = tries[one]
      result = one.result()
      sessions[room].set_result(item.job_id, result)
      pace = (time.monotonic() - begin) / done
      left = pace * (len(wanted) - done) / 60
      mutant = item.mutations[0]
      where = f"{mutant.module_path}:{mutant.start_pos[0]}"
      rate = f"{done}/{len(wanted)}, {pace:.1f} s each, {left:.0f} min left"
      print(f"[{rate}] {result.test_outcome.value} {where}", flush=True)


def main(_) -> None:
  if unknown := sorted(set(ROOMS_FLAG.value) - set(ROOMS)):
    raise app.UsageError(f"--rooms={unknown[0]} is none of {', '.join(ROOMS)}")
  out = pathlib.Path(OUT.value).absolute()
  out.mkdir(parents=True, exist_ok=True)
  # What a mutant leaves as it is need not be compiled again.
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(out / "xla")
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
  logging.getLogger("cosmic_ray").setLevel(logging.WARNING)  # it tells every command that it runs
  begin = time.monotonic()
  sessions = {room: session(room, out) for room in ROOMS_FLAG.value}
  if RETEST.value:
    for work in sessions.values():
      forget_survivors(work)
  try_all(sessions, out)
  judged = [judge(room, work) for room, work in sessions.items()]
  killed = sum(one[0] for one in judged)
  counted = sum(one[1] for one in judged)
  minutes = (time.monotonic() - begin) / 60
  print(f"all: {killed} of {counted} killed ({killed / max(counted, 1):.1%}) in {minutes:.0f} min")
  unexplained = [line for one in judged for line in one[2]]
  if unexplained:
    print("survivors that survivors.toml does not explain:", *unexplained, sep="\n")
  sys.exit(bool(unexplained) or killed < LEAST * counted)


if __name__ == "__main__":
  app.run(main)
