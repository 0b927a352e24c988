"""Flags of a job of several processes, and what a binary does when it joins and leaves one."""

import contextlib
import os
import sys

from absl import flags

from gr4ad_jax import config as config_lib
from gr4ad_jax.parallel import distributed
from gr4ad_jax.parallel.roll_call import Job

# they belong to the binary that calls define_flags, so that its --help lists them
flags.disclaim_key_flags()


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines --coordinator, --num_processes, --process_id, --distributed and --start_timeout."""
  flags.DEFINE_string(
    "coordinator", "", "host:port of process 0 of a job of several.", flag_values=flag_values
  )
  flags.DEFINE_integer(
    "num_processes", 1, "Processes of the job.", lower_bound=1, flag_values=flag_values
  )
  flags.DEFINE_integer(
    "process_id", 0, "Number of this process, from 0.", lower_bound=0, flag_values=flag_values
  )
  help_text = (
    "auto: take the three above from the launcher's environment (SLURM, TPU VM, GKE, Open MPI)."
  )
  flags.DEFINE_enum("distributed", "off", ["off", "auto"], help_text, flag_values=flag_values)
  help_text = "Seconds that the processes of a job may start apart."
  flags.DEFINE_float("start_timeout", 300, help_text, lower_bound=1, flag_values=flag_values)


def _job(given: flags.FlagValues) -> Job | None:
  """The job that the flags name; None: this process is alone. Raises ConfigError."""
  if given.distributed == "auto":
    for name in ("coordinator", "num_processes", "process_id"):
      if given[name].present:
        raise config_lib.ConfigError(
          f"--{name}={given[name].value} is not allowed beside --distributed=auto"
        )
    return distributed.detect(given.start_timeout)
  if not given.coordinator and given.num_processes == 1 and not given.process_id:
    return None
  host, _, port = given.coordinator.rpartition(":")
  if not host or not port.isdigit() or not 0 < int(port) < 65536:
    raise config_lib.ConfigError(
      f"--coordinator={given.coordinator} is not allowed: host:port of process 0"
    )
  if given.process_id >= given.num_processes:
    raise config_lib.ConfigError(
      f"--process_id={given.process_id} is not allowed: at most {given.num_processes - 1}, "
      "--num_processes less 1"
    )
  return Job(given.coordinator, given.num_processes, given.process_id)


def join(knobs: set[str], given: flags.FlagValues = flags.FLAGS) -> bool:
  """Joins the job that the flags name; False where there is none. Only process 0 goes on printing.

  Args:
    knobs: flags that must be the same on all processes.
    given: the flags.

  Raises:
    ConfigError: flags that name no job.
    StartError: a process is missing or was started otherwise.
  """
  if "coordinator" not in given or (job := _job(given)) is None:
    return False
  settings = repr(sorted((name, given[name].value) for name in knobs))
  if job.process:
    sys.stdout = open(os.devnull, "w", encoding="utf-8")
  distributed.start(
    job, given.start_timeout, settings, _lost, lambda text: print(text, file=sys.stderr, flush=True)
  )
  return True


def _lost(reason: str) -> None:
  """Ends this process, which may hang in a collective operation for good: what it has saved is
  whole.
  """
  try:
    print(f"error: {reason}: the job ends", file=sys.stderr)
  finally:
    _exit(1)


def leave(status: int) -> None:
  """Ends this process of a job: with 0 once all are done, else at once, and the others with it."""
  try:
    distributed.finish(status)
  finally:
    _exit(status)


def _exit(status: int) -> None:
  try:
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(OSError, ValueError):  # a pipe that nobody reads any more
        stream.flush()
  finally:
    os._exit(status)  # what JAX does at exit would wait for processes that are gone
