"""Draws the pictures of the guide from two finished runs; trains nothing.

    python docs/make_figures.py --run runs/quadstable/default --scarce runs/quadstable/SCARCE

The runs are those of `python train.py` and of `python train.py data.recorded_fraction=0.1 data.observation_noise=0.5`.
"""

from __future__ import annotations

import argparse
import io
import shlex
import sys
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from connector import Network, load_run
from connector.analysis.fields import field_error
from connector.data.attractors import teacher
from connector.dynamics import activation, potentials
from connector.errors import UserError
from connector.figures.fields import draw_flow_field
from connector.figures.style import INFERRED, MUTED, STYLE, TRUE
from connector.runs.saved import Run

DOCS = Path(__file__).resolve().parent
COMMANDS = {
    "--run": "python train.py",
    "--scarce": "python train.py data.recorded_fraction=0.1 data.observation_noise=0.5",
}
SIGMAS = (0.0, 2.0)
SIZES = (100, 300, 1000, 3000, 10_000)


def concepts(run: Run) -> Figure:
    """Rates of a few neurons in one trial; the latent states of all trials in their vector field; the loadings."""
    latents, loadings, test = run.latents, run.loadings, run.stage_inputs.fold.test
    figure = Figure(figsize=(9.2, 2.9), layout="constrained")
    rates, plane, reading = figure.subplots(1, 3)
    trial = latents.trials(test[:1])
    phi = activation(run.stage_inputs.activation)(potentials(loadings, trial.z))[0]
    time = torch.arange(len(phi)) * latents.alpha
    for neuron in range(0, loadings.n_neurons, loadings.n_neurons // 8):
        rates.plot(time, phi[:, neuron], linewidth=1.1)
    rates.set(title="a  rates of some neurons, one trial", xlabel="time (time constants)", ylabel=r"rate $\phi(h_i)$")
    network = run.connectivity.sample(n_neurons=1000, project=True)
    states, _, _ = latents.trials(test).samples()
    draw_flow_field(plane, network, states, trajectories=latents.trials(test[:16]).z, n_grid=40)
    plane.set_title("b  latent states and vector field")
    points = reading.scatter(*loadings.m.T, c=potentials(loadings, trial.z)[0, -1], s=5, cmap="coolwarm", linewidths=0)
    figure.colorbar(points, ax=reading, label="potential at the trial's end")
    reading.set(title="c  the neurons' loadings", xlabel=r"$m_1$", ylabel=r"$m_2$", aspect="equal")
    return figure


def _scatter(axis: Axes, network: Network, title: str) -> None:
    axis.scatter(network.m[:, 0], network.n[:, 0], s=4, color=INFERRED, alpha=0.6, linewidths=0)
    axis.set(title=title, xlabel=r"loading $m_1$", ylabel=r"output weight $n_1$", ylim=(-8, 8))


def same_dynamics(run: Run) -> Figure:
    """Two networks with the same loadings and another spread of n, and the vector field of each."""
    states, _, y = run.latents.trials(run.stage_inputs.fold.test).samples()
    figure = Figure(figsize=(9.2, 2.6), layout="constrained")
    axes = figure.subplots(1, 4)
    cap = None
    for i, sigma in enumerate(SIGMAS):
        network = run.connectivity.sample(n_neurons=1000, sigma=sigma, project=True, seed=1)
        _scatter(axes[2 * i], network, rf"{'ac'[i]}  $\sigma$ = {sigma:g}")
        cap = draw_flow_field(axes[2 * i + 1], network, states, speed_cap=cap, n_grid=40)
        error = field_error(network, states, None, y)
        axes[2 * i + 1].set_title(f"{'bd'[i]}  its field: error {100 * error:.1f} %")
    return figure


def determined(rich: Run, scarce: Run) -> Figure:
    """nu_1 with its intervals, and the truth, where the data are many and where they are few."""
    figure = Figure(figsize=(8.2, 2.9), layout="constrained")
    for axis, run, title in zip(
        figure.subplots(1, 2, sharey=True), (rich, scarce), ("a  all neurons, no noise", "b  a tenth of them, noisy")
    ):
        loadings = run.connectivity.sample(n_neurons=400, seed=2).loadings
        found = run.connectivity.diagnose(loadings)
        order = found.nu[:, 0].argsort()
        place = torch.linspace(0, 100, len(order))
        low, high = found.low[order, 0], found.high[order, 0]
        axis.fill_between(place, low, high, color=INFERRED, alpha=0.25, linewidth=0, label="95 % interval")
        axis.plot(place, found.nu[order, 0], color=INFERRED, linewidth=1.3, label="estimate")
        nu = teacher(str(run.config.data.name)).conditional_mean(loadings)[order, 0]
        axis.scatter(place, nu, color=TRUE, s=3, linewidths=0, zorder=3, label="truth")
        axis.axhline(0, color=MUTED, linewidth=0.7, zorder=0)
        axis.set(title=title, xlabel="sampled neurons, by the estimate (%)", xlim=(0, 100))
    figure.axes[0].set_ylabel(r"mean output weight $\nu_1$")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _errors(run: Run, sigma: float, project: bool, states: Tensor, y: Tensor) -> list[float]:
    networks = (run.connectivity.sample(k, sigma=sigma, project=project, seed=k) for k in SIZES)
    return [100 * field_error(network, states, None, y) for network in networks]


def projection(run: Run) -> Figure:
    """Error of the vector field of sampled networks against their size, as drawn and projected."""
    states, _, y = run.latents.trials(run.stage_inputs.fold.test).samples()
    figure = Figure(figsize=(4.2, 2.9), layout="constrained")
    axis = figure.subplots()
    for project, colour in ((False, MUTED), (True, INFERRED)):
        errors = _errors(run, 1.0, project, states[::4], y[::4])
        label = "projected" if project else "as drawn"
        axis.loglog(SIZES, errors, "o-", color=colour, markersize=4, linewidth=1.2, label=label)
    axis.set(xlabel="neurons of the sampled network", ylabel="error of the field (% of its rms)")
    axis.legend()
    return figure


def save(figure: Figure, name: str) -> Path:
    """A PNG of 64 colours: small enough for a page."""
    path, drawn = DOCS / f"{name}.png", io.BytesIO()
    figure.savefig(drawn, dpi=110, facecolor="white")
    Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def of_report(run: Run, name: str) -> Path:
    """A figure of the run's report, three quarters as large; its few bright marks keep their colours."""
    path, drawn = DOCS / f"{name}.png", Image.open(run.path / "figures" / f"{name}.png").convert("RGB")
    small = drawn.resize((3 * drawn.width // 4, 3 * drawn.height // 4), Image.Resampling.LANCZOS)
    small.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def open_run(option: str, path: str | None) -> Run:
    if path is None or not (Path(path) / "metrics.json").exists():
        raise UserError(f"a finished run with {option} DIR", str(path), f"make it with: {COMMANDS[option]}")
    return load_run(path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="runs/quadstable/default", metavar="DIR")
    parser.add_argument("--scarce", metavar="DIR")
    options = parser.parse_args(arguments)
    try:
        rich, scarce = open_run("--run", options.run), open_run("--scarce", options.scarce)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(shlex.quote(str(of_report(rich, "flow_field"))))
    with matplotlib.rc_context(STYLE):
        for name, draw in {
            "concepts": lambda: concepts(rich),
            "same_dynamics": lambda: same_dynamics(rich),
            "determined": lambda: determined(rich, scarce),
            "projection": lambda: projection(rich),
        }.items():
            print(shlex.quote(str(save(draw(), name))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
