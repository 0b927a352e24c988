"""Tasks as an Apache Beam pipeline, for clusters: the workers share the disk that the folder of
examples lies on.

Beam deals out partitions, and no events: each worker reads its own from the disk, and writes files
of its own. It runs the functions that the pool runs, so the examples are the same.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gr4ad_jax.data.extras import beam_pipeline, optional


def run(
  task: Callable[..., Any], arguments: Sequence[tuple], options: Sequence[str] = ()
) -> Iterator[tuple[int, None]]:
  """As `pool.run`, of a task whose result does not matter: yields once all are done.

  Args:
    task: a function of a module that may be done twice; Beam does again what failed.
    arguments: of each call.
    options: of the Beam pipeline, as on its command line.

  Raises:
    ImportError: the `beam` extra is missing.
    ConfigError: options that Beam refuses.
  """
  beam = optional("apache_beam", "beam")
  pipeline = beam_pipeline(options)
  # Leaving the block runs the pipeline and waits for its end.
  with pipeline:
    # The result is of no use: workers write files, and the block's end says that all are done.
    _ = (
      pipeline
      | beam.Create(list(enumerate(arguments)))
      | beam.Reshuffle()  # else one worker may get them all
      | beam.Map(_call, task)
    )
  # In order, since nothing is known of a single task before all are done.
  yield from ((number, None) for number in range(len(arguments)))


def _call(element: tuple[int, tuple], task: Callable[..., Any]) -> int:
  """Does one task; the number says that it is done."""
  number, arguments = element
  task(*arguments)
  return number
