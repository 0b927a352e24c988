"""A bucket's run in a local directory: what is fetched, what is sent, and who wins.

Three states are compared file by file: what the bucket has, what lies here, and what the bucket had
when the two were last the same. What changed on one side alone is taken over. Where another job
trained the run since, the bucket wins: what lies here alone is set aside, not deleted.
"""

import logging
import os
import time
import uuid
from collections.abc import Sequence

from gr4ad_jax import checksums
from gr4ad_jax.knobs import ConfigError
from gr4ad_jax.locks import InUseError, Lock
from gr4ad_jax.remote import claims, pointer, snapshot, transfers
from gr4ad_jax.remote.directory import Directory, Synced
from gr4ad_jax.remote.pointer import File, Pointer
from gr4ad_jax.remote.store import Store

_FILES = "files"  # folder of the objects
_REPORT = "report-"  # begins the writer's name in an object that no claimed job sent
_LOOKS = 10  # at files that are being changed, or objects that made room for newer ones
_PAUSE = 0.2  # seconds between two looks
# What a job that does not train writes in a run's directory.
_REPORTS = ("eval/", "reward/report.json", "reward/SHA256SUMS")
_log = logging.getLogger(__name__)


class Mirror:
  """A run in a bucket and its local directory.

  Args:
    url: of the run, as `urls.checked` gives it.
    store: its objects; None: over fsspec.

  Attributes:
    url: of the run.
    folder: the local directory.
    claim: id of this job, while it trains the run; empty otherwise.
  """

  renewed = claims.RENEWED
  dead = claims.DEAD
  look = claims.LOOK

  def __init__(self, url: str, store: Store | None = None):
    self.url = url
    self.claim = ""
    self._store = store or Store(url)
    self._directory = Directory(url)
    self.folder = self._directory.path
    self._training: Lock | None = None
    self._signs: claims.Signs | None = None
    self._sent: set[str] = set()  # objects that no pointer of this job has listed yet
    self._seen = -1  # number of the pointer whose state was last taken over

  def pull(self) -> bool:
    """Fetches what is newer in the bucket, but for the arrays of checkpoints: see `bring`.

    Nothing is fetched where another process of this machine trains in the directory: what lies
    there is newer.

    Returns:
      Whether the bucket has a run.

    Raises:
      DamagedError: an object is not what was written, or is missing.
      OSError: the bucket does not answer.
    """
    with self._directory.alone() as synced:
      if self.claim or self._directory.is_trained():
        return True
      if pointer.number(self._store) == self._seen:  # looked at often, and nothing is new
        return bool(synced.base.files)
      return bool(self._pull(synced).files)

  def _pull(self, synced: Synced) -> Pointer:
    for _ in range(_LOOKS):
      there = pointer.latest(self._store)
      try:
        self._take_over(synced, there)
        self._seen = there.number
        return there
      except FileNotFoundError as error:
        # Its objects made room for those of a newer state, which is read next.
        if pointer.latest(self._store).number == there.number:
          raise checksums.DamagedError(f"{self.url} is damaged: {error}") from error
    raise OSError(f"{self.url} changes faster than it can be read")

  def _take_over(self, synced: Synced, there: Pointer) -> None:
    """Makes the local directory what the bucket's state says."""
    folder = self._directory
    synced.known = snapshot.look(folder.path, synced.known)
    if synced.pending == there:  # it was written, and the process was killed before it knew
      synced.base = there
    if there.claim != synced.base.claim and synced.own():
      folder.set_aside()
      synced.base = Pointer()
      synced.known = {}
      folder.save(synced)
    base = synced.base.files
    wanted = {}
    for name, file in there.files.items():
      here = synced.known.get(name)
      if here and here.digest == file.digest:
        continue
      # What the bucket has as before was changed here since, and is newer here.
      if here and name in base and base[name].digest == file.digest:
        continue
      if not snapshot.is_array(name):
        wanted[name] = file
      elif here:
        folder.remove([name])
    folder.remove([name for name in base if name not in there.files])
    folder.fetch(self._store, wanted, f"fetching {self.url}")
    synced.known = snapshot.look(folder.path, synced.known)
    synced.base = there
    synced.pending = None
    folder.save(synced)

  def bring(self, step_folder: str, items: Sequence[str]) -> None:
    """Fetches the arrays of a checkpoint that do not lie here yet.

    Args:
      step_folder: of the checkpoint, in the local directory.
      items: folders in it, such as `params`.

    Raises:
      FileNotFoundError: the checkpoint made room for a newer one.
      DamagedError, OSError: as `pull`.
    """
    step = os.path.relpath(step_folder, self.folder).replace(os.sep, "/")
    number = os.path.basename(step)
    tops = tuple(f"{step}/{item}/" for item in items)
    with self._directory.alone() as synced:
      wanted = {
        name: file
        for name, file in synced.base.files.items()
        if name.startswith(tops) and not os.path.exists(self._directory.at(name))
      }
      try:
        self._directory.fetch(self._store, wanted, f"fetching checkpoint {number} of {self.url}")
      except FileNotFoundError as error:
        if all(name in pointer.latest(self._store).files for name in wanted):
          raise checksums.DamagedError(f"{self.url} is damaged: {error}") from error
        raise FileNotFoundError(
          f"{self.url}: checkpoint {number} made room for a newer one"
        ) from error

  def push(self) -> bool:
    """Sends what is newer here, then moves the pointer.

    A job that has claimed the run sends all, and takes checkpoints that were deleted here out of
    the bucket. Another one sends reports alone.

    Returns:
      Whether anything was sent.

    Raises:
      ConfigError: another job has taken the run over.
      DamagedError: what lies here is not what was written.
      OSError: the bucket does not answer.
    """
    # Whoever has the claim is the only one to write here.
    if self.claim:
      return self._push(self._directory.load(), self.claim, keep=True)
    with self._directory.alone() as synced:
      synced.known = snapshot.look(self.folder, synced.known)
      # A server that ends, say, has nothing to send, and does not wait for a bucket that is away.
      if not any(name.startswith(_REPORTS) for name in synced.own()):
        return False
      return self._push(synced, "", keep=not self._directory.is_trained())

  def _push(self, synced: Synced, claim: str, keep: bool) -> bool:
    """Sends as the job of a claim, or as none; `keep`: whether to note what was sent."""
    for _ in range(_LOOKS):
      before = pointer.latest(self._store)
      if claim and before.claim != claim:
        raise ConfigError(
          f"--workdir={self.url} is this job's no longer: another one took it over, or it was "
          f"deleted; what was made lies in {self.folder}"
        )
      with self._directory.staging() as staging:
        after = self._send(synced, before, claim, staging, keep)
      if after is None:
        # Another writer came first, such as an evaluation, or a file is just being changed.
        time.sleep(_PAUSE)
        continue
      listed = {file.object for file in after.files.values()}
      # What the former state had, and what was sent in vain since.
      replaced = {file.object for file in before.files.values()} | self._sent
      self._store.delete(sorted(replaced - listed))
      self._sent.clear()
      if after is not before:
        pointer.forget_older(self._store, after)
      return after is not before
    raise OSError(f"{self.folder} or {self.url} changes faster than it can be sent")

  def _send(
    self, synced: Synced, before: Pointer, claim: str, staging: str, keep: bool
  ) -> Pointer | None:
    """The pointer that was written; `before` where nothing is new; None: to be tried again."""

    def changed(name: str, digest: str) -> bool:
      mine = bool(claim) or name.startswith(_REPORTS)
      return mine and (name not in before.files or before.files[name].digest != digest)

    found, sources = snapshot.stage(self.folder, staging, synced.known, changed)
    if claim and self._is_torn(found, sources, before):
      return None
    # A name of its own for each writer: nobody deletes what another is about to point to.
    writer = claim or f"{_REPORT}{uuid.uuid4().hex}"
    sent = {}
    for name in sources:
      one = found[name]
      sent[name] = File(one.digest, one.size, f"{_FILES}/{name}.{one.digest[:16]}.{writer}")
    uploads = {sent[name].object: path for name, path in sources.items()}
    self._sent |= set(uploads)
    transfers.upload(self._store, uploads, f"sending to {self.url}")
    steps = {snapshot.step_of(name) for name in found}
    kept = {
      name: file
      for name, file in before.files.items()
      # A checkpoint that was deleted here goes in the bucket, too.
      if not claim or snapshot.step_of(name) in steps | {""}
    }
    after = before
    if kept | sent != before.files:
      after = pointer.following(before, files=kept | sent)
      synced.known = found
      synced.pending = after
      self._note(synced, keep)
      if not pointer.write(self._store, after):
        return None
    synced.base = after
    synced.pending = None
    self._note(synced, keep)
    return after

  def _note(self, synced: Synced, keep: bool) -> None:
    if keep:
      self._directory.save(synced)

  def _is_torn(self, found: dict, sources: dict[str, str], before: Pointer) -> bool:
    """Whether a file was in the middle of a change. Raises DamagedError where it stays wrong."""
    wrong = snapshot.disagreement(self.folder, found, sources, before.files)
    if wrong and not snapshot.step_of(wrong):
      checksums.check(self._directory.at(wrong))
    elif wrong and os.path.exists(self._directory.at(wrong)):
      checksums.check_tree(self._directory.at(snapshot.step_of(wrong)), wrong.endswith)
    return bool(wrong)

  def take(self) -> None:
    """Claims the run for this job, which alone sends states from then on, and fetches what is
    newer.

    Raises:
      ConfigError: another job trains it.
      OSError: the bucket does not answer.
    """
    with self._directory.alone() as synced:
      try:
        self._training = self._directory.training()
      except InUseError as error:
        raise ConfigError(
          f"--workdir={self.url} is not allowed: another process is training the run in it"
        ) from error
      try:
        mine = self._claimed(synced)
      except BaseException:
        self._training.close()
        raise
      try:
        pointer.forget_older(self._store, mine)
        claims.forget_others(self._store, mine.claim)
        self._forget_unlisted(mine)
      except BaseException:
        self.release()
        raise

  def _claimed(self, synced: Synced) -> Pointer:
    for _ in range(_LOOKS):
      there = self._pull(synced)
      claims.check_free(self._store, there, _log.warning, self.dead, self.look)
      mine = pointer.following(there, claim=uuid.uuid4().hex, owner=claims.owner())
      synced.pending = mine
      self._directory.save(synced)
      # The sign comes first: a claim without one counts as that of a job that has ended.
      signs = claims.Signs(self._store, mine.claim, self.renewed)
      if pointer.write(self._store, mine):
        self.claim = mine.claim
        self._signs = signs
        synced.base = mine
        synced.pending = None
        self._directory.save(synced)
        return mine
      signs.close()
    raise OSError(f"{self.url} changes faster than it can be claimed")

  def _forget_unlisted(self, mine: Pointer) -> None:
    """Deletes what jobs that were killed had sent for a pointer that never came.

    What reports are sent as is left alone: an evaluation may be about to point to it.
    """
    listed = {file.object for file in mine.files.values()}
    unlisted = set(self._store.entries(_FILES)) - listed
    self._store.delete(
      sorted(name for name in unlisted if not name.rpartition(".")[2].startswith(_REPORT))
    )

  def hurry(self) -> None:
    """From now on a bucket that does not answer is not waited for."""
    self._store.hurry()

  def release(self) -> None:
    """Gives the run free. What was not sent stays here."""
    if not self.claim:
      return
    claim = self.claim
    self.claim = ""
    try:
      mine = pointer.latest(self._store)
      # A job that wrote nothing leaves nothing. What could not be sent is known by its claim.
      if mine.claim == claim and not mine.files and not snapshot.names(self.folder):
        pointer.forget(self._store, mine)
    except OSError as error:
      _log.debug("%s: an empty state may be left (%s)", self.url, error)
    try:
      self._signs.close()
    except OSError as error:  # without further signs it counts as dead in a while
      _log.debug("%s: the sign of life stays (%s)", self.url, error)
    finally:
      self._training.close()
