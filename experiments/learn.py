"""Goes on learning from a trained run with the events of a stream; stops and goes on as it is told.

python -m experiments.learn --workdir=runs/online_retail
"""

from absl import flags

from gr4ad_jax.answering.living import live_folder, stream_url
from gr4ad_jax.learning.learn_task import LearnTask
from gr4ad_jax.learning.learner import Learner
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache
from gr4ad_jax.streams.opening import open_stream

from . import flags as flags_lib
from .progress import show_learning, tell

_FOLLOW = flags.DEFINE_boolean(
  "follow", True, "At the end of the stream, wait for more; off: end there."
)


def main(argv):
  """Runs a learner from flags."""
  del argv
  config = flags_lib.config_from_workdir()
  LearnTask.check(config)
  url = stream_url(config, live_folder(config))
  stream = open_stream(url)
  try:
    enable_compilation_cache()
    tell("opening the run and its log")
    task = LearnTask.over(config, stream)
    print(f"learning in {task.folder} from {url}", flush=True)
    ended = Learner(task, on_round=show_learning).run(follow=_FOLLOW.value)
  finally:
    stream.close()
  step = int(ended.state.step)
  if ended.status == "stopped":
    print(f"stopped at step {step}; the same command goes on from there", flush=True)
  else:
    print(f"all that makes a round was learned from, up to step {step}", flush=True)
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  flags_lib.run(main, local="a learner writes as it goes")
