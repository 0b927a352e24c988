"""The table of BTDNet's ablation: rows beside the base, by what makes sentences and scenes hard."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from gr4ad_jax.evaluation.metrics import Ratio, interval, resample
from gr4ad_jax.evaluation.report_tables import aligned, cell
from gr4ad_jax.scenes.referring import Referring
from gr4ad_jax.segmentation import metrics, report
from gr4ad_jax.segmentation.controls import PLACED, WITHOUT_PLACE
from gr4ad_jax.segmentation.metrics import Counts

WHOLE = "all sentences"
PLACED_KINDS = "kinds with a place"  # what the control without place and relation cuts
SHOWN = ("oIoU", "Pr@0.7", "Pr@0.9", "F")
RUN = "run"  # the sentences as they are, beside the names of the controls

# Of one row: seed -> name of a control, or RUN -> counts by sentence.
Seeds = Mapping[int, Mapping[str, Counts]]


def results(data: Referring, rows: Mapping[str, Seeds]) -> dict:
  """Scores rows on the same sentences and the same draws of the images.

  Sums of several seeds are added up, sentence by sentence. A step from the base is that of the
  seeds which both have.

  Args:
    data: the split, L sentences.
    rows: name -> its runs; the first row is the base, and each has a seed in common with it.

  Returns:
    A dict for JSON. It has
    rows[name][group][metric]: {mean, low, high} of RUN, and steps[name] likewise: the row minus the
    base;
    controls[name][control][group]: oIoU of RUN and of each control, of WHOLE and of PLACED_KINDS;
    by_seed[name][seed]: oIoU;
    sentences[group].
  """
  groups = {WHOLE: np.ones(len(data), bool), PLACED_KINDS: np.isin(data.kind, PLACED)}
  groups |= report.groups(data)
  groups = {name: rows_L for name, rows_L in groups.items() if rows_L.any()}
  first = next(iter(rows))
  found: dict = {"rows": {}, "steps": {}, "controls": {}, "by_seed": {}}
  for group, rows_L in groups.items():
    # Most rows have the base's seeds, and it is drawn once for all of these.
    drawn = functools.cache(functools.partial(_drawn, rows, rows_L, data.row[rows_L]))
    for name, seeds in rows.items():
      own, samples_SF = drawn(name, tuple(sorted(seeds)))
      found["rows"].setdefault(name, {})[group] = _told(own, samples_SF)
      if name == first:
        continue
      common = tuple(sorted(set(seeds) & set(rows[first])))
      # The same images are drawn for both, so a difference is taken draw by draw.
      (ours, our_SF), (theirs, their_SF) = (drawn(one, common) for one in (name, first))
      found["steps"].setdefault(name, {})[group] = {
        metric: dataclasses.asdict(
          interval(ours[metric].value - theirs[metric].value, our_SF[:, m] - their_SF[:, m])
        )
        for m, metric in enumerate(SHOWN)
      }
  for name, seeds in rows.items():
    found["controls"][name] = {
      control: {
        group: _ratios([one[control].take(groups[group]) for one in seeds.values()])["oIoU"].value
        for group in (WHOLE, PLACED_KINDS)
        if group in groups
      }
      for control in next(iter(seeds.values()))
    }
    found["by_seed"][name] = {
      str(seed): _ratios([one[RUN]])["oIoU"].value for seed, one in seeds.items()
    }
  return found | {"sentences": {name: int(rows_L.sum()) for name, rows_L in groups.items()}}


def _drawn(
  rows: Mapping[str, Seeds], rows_L: np.ndarray, image: np.ndarray, name: str, seeds: Sequence[int]
) -> tuple[dict[str, Ratio], np.ndarray]:
  """SHOWN of a row's seeds on some sentences, whose images are given, and their samples [S, F]."""
  found = _ratios([rows[name][seed][RUN].take(rows_L) for seed in seeds])
  return found, resample(list(found.values()), image)


def _ratios(seeds: Sequence[Counts]) -> dict[str, Ratio]:
  """SHOWN of all seeds by sentence: numerators and denominators added up."""
  found = [metrics.ratios(one) for one in seeds]
  return {
    name: Ratio(
      # An oIoU's denominator is the run's own, so both parts are summed.
      np.sum([one[name].numerator_R for one in found], axis=0),
      np.sum([one[name].denominator_R for one in found], axis=0),
    )
    for name in SHOWN
  }


def _told(ratios: Mapping[str, Ratio], samples_SF: np.ndarray) -> dict:
  return {
    name: dataclasses.asdict(interval(ratio.value, column))
    for (name, ratio), column in zip(ratios.items(), samples_SF.T, strict=True)
  }


def format_markdown(found: Mapping) -> str:
  """What `results` found, with the "about", "split" and "trained_steps" that the ablation adds."""
  names = list(found["rows"])
  total = found["sentences"][WHOLE]
  lines = [
    f"BTDNet rebuilt from the abstract; {found['split']}, {total:,} sentences. 95 % intervals by "
    f"bootstrap over images; {found['trained_steps']:,} steps a run.",
    "",
  ]
  table = [["row", "parameters", "decoder width", "seeds", *SHOWN, "oIoU less the base's"]]
  for name in names:
    about = found["about"][name]
    scores = found["rows"][name][WHOLE]
    table.append([
      name, f"{about['parameters']:,}", str(about["decoder_width"]),
      str(len(found["by_seed"][name])), *(cell(scores[metric]) for metric in SHOWN),
      _step(found, name, WHOLE, "oIoU"),
    ])  # fmt: skip
  lines += [*aligned(table), "", "oIoU by group, less the base's; bold where 0 is outside.", ""]
  table = [["group", "sentences", f"{names[0]} itself", *names[1:]]]
  for group, sentences in found["sentences"].items():
    own = cell(found["rows"][names[0]][group]["oIoU"])
    steps = (_step(found, name, group, "oIoU") for name in names[1:])
    table.append([group, str(sentences), own, *steps])
  controls = list(next(iter(found["controls"].values())))
  lines += [*aligned(table), "", "oIoU with other sentences.", ""]
  # A published data set tells no kinds, and then nothing has words of place to lose.
  placed = [one for one in (RUN, WITHOUT_PLACE) if PLACED_KINDS in found["sentences"]]
  table = [["row", *controls, *(f"{PLACED_KINDS}: {one}" for one in placed)]]
  for name in names:
    scores = found["controls"][name]
    cells = [scores[one][WHOLE] for one in controls]
    cells += [scores[one][PLACED_KINDS] for one in placed]
    table.append([name, *(f"{value:.3f}" for value in cells)])
  return "\n".join([*lines, *aligned(table)]) + "\n"


def _step(found: Mapping, name: str, group: str, metric: str) -> str:
  """A row's step from the base; empty for the base itself."""
  step = found["steps"].get(name, {}).get(group, {}).get(metric)
  if step is None:
    return ""
  return cell(step, step["low"] > 0 or step["high"] < 0, signed=True)
