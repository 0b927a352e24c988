"""`load`: the splits of a data set by its config, prepared on first use and read back whole."""

import contextlib
import io
import logging
import os
import shutil
import tempfile

from gr4ad_jax.builders.prepare import default_data_dir
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.locks import Lock
from gr4ad_jax.scenes.referring import Referring
from gr4ad_jax.scenes.sections import SegmentationConfig

_log = logging.getLogger(__name__)


def load(own: SegmentationConfig, told=lambda *_: None) -> dict[str, Referring]:
  """train, valid and test.

  Prepared data lie in `<scenes_dir>/<fingerprint>`; the fingerprint changes with the sources' bytes
  and with the options. What is missing or damaged is prepared again. Processes that start together
  prepare once.

  Args:
    own: the data set and its options.
    told: hears how a preparation fares.

  Raises:
    DataError: bad input, in one line, before anything is written.
    ImportError: the `data` or the `segmentation` extra is missing.
  """
  # Imported here: TFDS takes seconds.
  from gr4ad_jax.scenes.builders import BUILDERS

  make = BUILDERS[own.scenes]
  root = os.path.join(own.scenes_dir or default_data_dir(), make.fingerprint(own))
  splits = _stored(make, own, root)
  if splits is None:
    # Made before the lock is taken, since it takes long and writes nothing.
    made = make.read(own, told)
    os.makedirs(root, exist_ok=True)
    with Lock(os.path.join(root, ".lock"), wait=True):
      # Another process may have been first.
      splits = _stored(make, own, root)
      if splits is None:
        _prepare(make, own, root, made)
        splits = _stored(make, own, root)
  if splits is None:
    raise DataError(f"{root}: the prepared data cannot be read back; is the disk sound?")
  return splits


def _stored(make: type, own: SegmentationConfig, root: str) -> dict[str, Referring] | None:
  """The splits that lie whole in `root`; None: they do not."""
  from gr4ad_jax.scenes.builders.base import PARTS, stored

  try:
    parts = [make(own=own, config=part, data_dir=root) for part in PARTS]
    if all(os.path.isdir(part.data_dir) for part in parts):
      return stored(*parts)
  except Exception as error:
    # A damaged file raises almost anything, and all of it means: prepare again.
    _log.warning(
      "%s is damaged and is prepared again (%s)", root, repr(error).splitlines()[0][:200]
    )
  return None


def _prepare(make: type, own: SegmentationConfig, root: str, splits: dict[str, Referring]) -> None:
  """Writes both parts, in place of what an interrupted run left; TFDS gives a part its name only
  when it is whole.
  """
  import tensorflow_datasets as tfds

  from gr4ad_jax.scenes.builders.base import PARTS

  # Under the lock: nobody else writes here now.
  shutil.rmtree(os.path.join(root, make.name), ignore_errors=True)
  tfds.disable_progress_bar()
  for part in PARTS:
    builder = make(own=own, splits=splits, config=part, data_dir=root)
    # TFDS prints what it does, and wants a folder of downloads, though nothing is downloaded.
    with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare(download_dir=downloads)
