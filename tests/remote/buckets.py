"""Buckets for tests: in memory, with kills at any write, and machines with a cache of their own."""

import pathlib

from gr4ad_jax import checksums, files
from gr4ad_jax.remote import mirror as mirror_lib
from gr4ad_jax.remote import pointer
from gr4ad_jax.remote.mirror import Mirror
from gr4ad_jax.remote.store import Store

URL = "memory://bucket/runs/mine"


class Killed(BaseException):
  """Stands for a kill: nothing handles it."""


class Mortal(Store):
  """A store whose process is killed before one of its writes.

  Args:
    left: writes before that; None: it lives.
  """

  def __init__(self, url: str = URL, left: int | None = None):
    super().__init__(url, patience=0)
    self.left = left
    self.writes = 0

  def _live(self) -> None:
    if self.left is not None and self.writes >= self.left:
      raise Killed
    self.writes += 1

  def write(self, name, content):
    self._live()
    super().write(name, content)

  def create(self, name, content):
    self._live()
    return super().create(name, content)

  def put(self, path, name, told):
    self._live()
    super().put(path, name, told)

  def delete(self, names):
    for name in names:
      self._live()
      super().delete([name])


class Machines:
  """Machines, each with a cache of its own.

  Args:
    monkeypatch: pytest's.
    folder: where their caches lie.
  """

  def __init__(self, monkeypatch, folder: pathlib.Path):
    self._monkeypatch = monkeypatch
    self._folder = folder

  def on(self, name: str) -> pathlib.Path:
    """From now on this process is on a machine; gives its cache."""
    cache = self._folder / name
    self._monkeypatch.setenv("GR4AD_CACHE", str(cache))
    return cache

  def mirror(self, name: str, left: int | None = None) -> Mirror:
    """The run as seen from a machine, by a process that may be killed."""
    self.on(name)
    made = Mirror(URL, Mortal(URL, left))
    made.renewed = 3600.0
    made.look = 0.01
    made.dead = 0.05
    return made


def write_step(folder: str, step: int, text: str) -> None:
  """A checkpoint as training writes it, under a temporary name first."""
  made = pathlib.Path(folder, "checkpoints", f"{step}.orbax-checkpoint-tmp-1")
  for name in ("_CHECKPOINT_METADATA", "metrics/metrics", "params/a", "opt_state/b"):
    path = made / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text} {name} {step}")
  checksums.write_tree(str(made))
  made.rename(made.parent / str(step))


def remove_step(folder: str, step: int) -> None:
  """A checkpoint that made room."""
  at = pathlib.Path(folder, "checkpoints", str(step))
  for path in sorted(at.rglob("*"), reverse=True):
    path.rmdir() if path.is_dir() else path.unlink()
  at.rmdir()


def first(folder: str) -> None:
  """What a run writes up to its first checkpoint."""
  files.write_json(f"{folder}/config.json", {"checksums": True})
  files.write_json(f"{folder}/features/names.json", ["one"])
  pathlib.Path(folder, "metrics.jsonl").write_text("2\n")
  pathlib.Path(folder, "lock").write_text("")
  write_step(folder, 2, "first")


def second(folder: str) -> None:
  """What it writes up to the next one."""
  files.write_json(f"{folder}/config.json", {"checksums": True, "epochs": 9})
  pathlib.Path(folder, "metrics.jsonl").write_text("2\n4\n")
  write_step(folder, 4, "second")
  remove_step(folder, 2)


def content(folder: str) -> dict[str, str]:
  """Name -> text of every file of the run."""
  top = pathlib.Path(folder)
  found = (path for path in top.rglob("*") if path.is_file() and path.name != "lock")
  return {str(path.relative_to(top)): path.read_text() for path in sorted(found)}


def seen(machines: Machines, name: str) -> dict[str, str]:
  """All files of the run, as a machine that never saw it finds them."""
  reader = machines.mirror(name)
  if not reader.pull():
    return {}
  for step in pathlib.Path(reader.folder).glob("checkpoints/*"):
    reader.bring(str(step), ("params", "opt_state"))
    checksums.check_tree(str(step))
  checksums.check(f"{reader.folder}/config.json")
  return content(reader.folder)


def objects() -> set[str]:
  """Names of all objects that hold files."""
  return set(Store(URL, patience=0).entries(mirror_lib._FILES))


def listed() -> set[str]:
  """Those that the pointer lists."""
  return {file.object for file in pointer.latest(Store(URL, patience=0)).files.values()}
