"""Scaling curves, how models get better with size: a fitted power law, a table and a chart."""

from collections.abc import Mapping, Sequence

import numpy as np

from gr4ad_jax.evaluation import plots, report_tables


def power_law(parameters: Sequence[int], loss: Sequence[float]) -> dict[str, float]:
  """The law loss = scale * parameters^-exponent, by least squares of the logarithms.

  Args:
    parameters: of two or more models of different size.
    loss: of each, above 0.

  Returns:
    scale, exponent, and r2, the share of the logarithms' variance that the law explains.
  """
  # In float, since parameters are large whole numbers.
  x = np.log(np.asarray(parameters, float))
  y = np.log(np.asarray(loss, float))
  # A power law is a line in logarithms.
  slope, offset = np.polyfit(x, y, 1)
  # 0 where all losses are equal: the law then fits wholly.
  spread = np.square(y - y.mean()).sum()
  r2 = 1 - np.square(y - slope * x - offset).sum() / spread if spread else 1.0
  return {"scale": float(np.exp(offset)), "exponent": float(-slope), "r2": float(r2)}


def measures(found: Mapping) -> list[str]:
  """Names of recall and revenue at the protocol's cuts."""
  return [name for name in found["beams"][0] if name.startswith(("recall@", "revenue@"))]


def rising(found: Mapping) -> dict[str, dict[str, bool]]:
  """Whether each measure never falls along a list, and the training loss never rises."""
  never = lambda values: bool((np.diff(values) >= 0).all())  # noqa: E731
  out = {
    kind: {name: never([one[name] for one in found[kind]]) for name in measures(found)}
    for kind in ("sizes", "beams")
  }
  # A loss that never rises is a negated one that never falls.
  out["sizes"]["train_loss"] = never([-one["train_loss"] for one in found["sizes"]])
  return out


def format_markdown(found: Mapping) -> str:
  """Two Markdown tables and the law in words."""
  shown = measures(found)
  law = found["law"]
  head = [["width", "parameters", "train loss", *shown], ["beams", *shown]]
  sizes = [
    [
      str(one["width"]),
      f"{one['parameters']:,}",
      f"{one['train_loss']:.4f}",
      *(f"{one[m]:.4f}" for m in shown),
    ]
    for one in found["sizes"]
  ]
  beams = [[str(one["beams"]), *(f"{one[m]:.4f}" for m in shown)] for one in found["beams"]]
  return "\n".join(
    [
      (
        f"{found['dataset']}, test, {len(found['seeds'])} seeds: means. The beams are the largest "
        "model's."
      ),
      "",
      *report_tables.aligned([head[0], *sizes]),
      "",
      (
        f"Train loss = {law['scale']:.3g} x parameters^-{law['exponent']:.3g}, r2 {law['r2']:.3f} "
        "of the logarithms."
      ),
      "",
      *report_tables.aligned([head[1], *beams]),
      "",
    ]
  )


def plot(found: Mapping, png_path: str) -> None:
  """Train loss with its law, and the measures, by parameters and by beams."""
  shown = measures(found)
  law = found["law"]
  parameters = [one["parameters"] for one in found["sizes"]]
  with plots.panels(3, (9.5, 3.2), png_path) as axes:
    axes[0].plot(
      parameters, [one["train_loss"] for one in found["sizes"]], "o", color=plots.COLORS[0]
    )
    axes[0].plot(
      parameters,
      [law["scale"] * n ** -law["exponent"] for n in parameters],
      "-",
      color=plots.INK,
      lw=1,
    )
    axes[0].set(
      title=f"train loss, exponent {law['exponent']:.3f}",
      xscale="log",
      yscale="log",
      xlabel="parameters",
    )
    for axis, kind, x in ((axes[1], "sizes", "parameters"), (axes[2], "beams", "beams")):
      for number, name in enumerate(shown):
        color = plots.COLORS[number % len(plots.COLORS)]
        axis.plot(
          [one[x] for one in found[kind]],
          [one[name] for one in found[kind]],
          "o-",
          label=name,
          color=color,
        )
      axis.set(title=f"test, by {x}", xscale="log", xlabel=x)
    axes[2].legend(fontsize=8)
