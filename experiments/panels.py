"""Parts of figures that several scripts draw: on axes that they are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from scipy.stats import gaussian_kde
from torch import Tensor

from connector.analysis.cell_types import MixtureLikelihood
from connector.dynamics import Network
from connector.figures.style import ACCENT, GROUPS, INFERRED, MUTED, TRUE

_COLOURS = np.array(GROUPS)


def limits_of(*arrays: Tensor, tail: float = 0.002, pad: float = 0.08) -> tuple[float, float]:
    """Axis limits that hold all but the outermost ``tail`` of the values on either side."""
    values = np.concatenate([array.detach().flatten().numpy() for array in arrays])
    low, high = np.quantile(values, [tail, 1 - tail])
    room = pad * (high - low)
    return float(low - room), float(high + room)


def scatter(
    axes: Sequence[Axes],
    network: Network,
    *,
    labels: Tensor | None = None,
    limits: tuple[tuple[float, float], tuple[float, float]],
    title: str = "",
    subtitle: str = "",
    max_points: int = 1000,
) -> None:
    """n_i against m_i, one axis for each latent dimension i, coloured by label."""
    shown = slice(0, max_points)  # neurons are in no order
    for i, axis in enumerate(axes):
        colour = GROUPS[0] if labels is None else _COLOURS[labels[shown].numpy() % len(GROUPS)]
        axis.scatter(network.m[shown, i].numpy(), network.n[shown, i].numpy(), s=5, c=colour, alpha=0.55, linewidths=0,
                     rasterized=True)  # fmt: skip
        axis.set(xlim=limits[0], ylim=limits[1], xlabel=f"loading $m_{{{i + 1}}}$ (per latent unit)",
                 ylabel=f"output weight $n_{{{i + 1}}}$\n(latent units)")  # fmt: skip
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.yaxis.set_major_locator(MaxNLocator(6))
    axes[0].set_title(f"{title}\n", fontsize=9)
    axes[0].annotate(subtitle, (0, 1), xycoords="axes fraction", xytext=(0, 6), textcoords="offset points", fontsize=7.5,
                     color=MUTED)  # fmt: skip


def densities(
    axis: Axes, values: Mapping[str, Tensor], styles: Mapping[str, dict], limits: tuple[float, float]
) -> None:
    """Smoothed densities of one variable in several populations."""
    at = np.linspace(*limits, 300)
    for name, x in values.items():
        density = gaussian_kde(x.detach().numpy())(at)
        axis.plot(at, density, label=name, **styles[name])
    axis.set(xlim=limits, ylim=(0, None), ylabel="density")


def mixture_curve(axis: Axes, curve: MixtureLikelihood, null: Tensor, title: str) -> None:
    """Held-out log-likelihood (nats per neuron) of mixtures with k components beside its null (draws, C).

    The null is shifted to the curve's level at k = 1: its populations have another overall spread of n, and what tells
    of cell types is the gain over one component.
    """
    k, band = curve.components.numpy(), null.numpy()
    band = band - band[:, :1] + float(curve.mean[0])
    axis.fill_between(k, band.min(0), band.max(0), color=MUTED, alpha=0.25, linewidth=0)
    axis.plot(
        k, band.mean(0), color=MUTED, linestyle=(0, (4, 2)), label=f"no types, {len(band)} re-simulated (shifted)"
    )
    axis.errorbar(k, curve.mean.numpy(), yerr=curve.std.numpy(), color=INFERRED, marker="o", markersize=3.5,
                  capsize=2, elinewidth=0.9, label="neurons (mean ± sd over folds)")  # fmt: skip
    bend = list(k).index(curve.elbow)
    axis.plot(k[bend], curve.mean.numpy()[bend], "o", markersize=10, color="none", markeredgecolor=ACCENT,
              markeredgewidth=1.3, label="largest bend")  # fmt: skip
    axis.set(title=title, xlabel="mixture components $k$", ylabel="log-likelihood (nats per neuron)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def letter(axis: Axes, text: str) -> None:
    """The letter of a panel, left above its axes."""
    axis.annotate(text, (0, 1), xycoords="axes fraction", xytext=(-34, 10), textcoords="offset points", fontsize=13,
                  fontweight="bold", color=TRUE)  # fmt: skip
