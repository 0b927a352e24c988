"""Files that are read, and lie in a bucket: fetched whole before they are read.

A copy is kept at `<cache>/inputs/<digest of the address>`. At each use the bucket is asked whether
its objects are still the same; those that are others are fetched again.
"""

import dataclasses
import json
import os
import shutil

from gr4ad_jax import files
from gr4ad_jax.config import DataConfig
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.locks import Lock
from gr4ad_jax.remote import transfers, urls
from gr4ad_jax.remote.store import Entry, Store

_NOTE = "source.json"
SOURCES = ("ads_path", "events_path", "journey_path")
"""Flags of a log's files."""

_asked: dict[str, str] = {}  # address -> path, of this process: asked of the bucket once


def local_path(flag: str, path: str) -> str:
  """A path to read in place of one that may be an address in a bucket.

  Args:
    flag: that names it, for messages.
    path: of a file or a folder, here or in a bucket.

  Raises:
    ConfigError: an address that is not allowed, or no credentials.
    DataError: nothing lies there.
    ImportError: the scheme's extra is missing.
    OSError: the bucket does not answer, or the disk is full.
  """
  if not urls.is_url(path):
    return path
  url = urls.checked(flag, path)
  if url not in _asked:
    _asked[url] = _fetched(flag, Store(url))
  return _asked[url]


def local_sources(data: DataConfig) -> DataConfig:
  """The config with local paths of its files, those in a bucket fetched. Raises as `local_path`."""
  paths = {flag: local_path(flag, getattr(data, flag)) for flag in SOURCES}
  return dataclasses.replace(data, **paths)


def _fetched(flag: str, store: Store) -> str:
  """Path of the copy, as the bucket has it now."""
  single = store.entry()
  there = {"": single} if single else store.entries()
  if not there:
    raise DataError(f"--{flag}={store.url}: nothing lies there")
  root = urls.cache_folder("inputs", store.url)
  path = os.path.join(root, urls.last_part(store.url))
  os.makedirs(root, exist_ok=True)
  # One process fetches; those that started with it wait, and find all of it.
  with Lock(os.path.join(root, "lock"), wait=True):
    note = os.path.join(root, _NOTE)
    before = _read(note)
    old = {name for name in there if _is_kept(_at(path, name), there[name], before.get(name))}
    _drop_others(path, there)
    wanted = {
      name: (name, "", entry.size) for name, entry in sorted(there.items()) if name not in old
    }
    if wanted:
      # Until the note is there again, nothing that lies here counts.
      files.write_json(note, {name: list(there[name]) for name in old}, summed=False)
      part = f"{path}.part"
      shutil.rmtree(part, ignore_errors=True)
      paths = {_at(part, name): about for name, about in wanted.items()}
      transfers.download(store, paths, f"fetching --{flag}={store.url}")
      for name in wanted:
        os.makedirs(os.path.dirname(_at(path, name)), exist_ok=True)
        os.replace(_at(part, name), _at(path, name))
      files.write_json(note, {name: list(entry) for name, entry in there.items()}, summed=False)
      shutil.rmtree(part, ignore_errors=True)
  return path


def _at(path: str, name: str) -> str:
  return os.path.join(path, name) if name else path


def _is_kept(path: str, entry: Entry, before: list | None) -> bool:
  """Whether a copy is of the very object that is there now, and has its size."""
  return before == list(entry) and os.path.isfile(path) and os.path.getsize(path) == entry.size


def _drop_others(path: str, there: dict[str, Entry]) -> None:
  """Deletes copies of objects that are gone: a folder of parts is read with all that it holds."""
  if os.path.isdir(path) and "" in there:
    shutil.rmtree(path)
  for at, _, names in os.walk(path):
    for name in names:
      found = os.path.relpath(os.path.join(at, name), path).replace(os.sep, "/")
      if found not in there:
        os.remove(os.path.join(at, name))


def _read(note: str) -> dict[str, list]:
  try:
    with open(note, encoding="utf-8") as file:
      return json.load(file)
  except (FileNotFoundError, ValueError):
    return {}
