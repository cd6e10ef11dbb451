"""The recorded session of the scoreboard: co-smoothing and few-shot co-smoothing of each method's latent states.

A fifth of the neurons is held out. A method learns from the others alone and gives the latent states of all trials. A Poisson
regression of each held-out neuron on these states, fitted to all training trials (co-smoothing) or to twenty of them (few-shot
co-smoothing), is scored on test trials, in bits per spike over the neuron's mean rate there (Dabholkar and Barak 2024). States with
dynamics that the population does not have cost nothing with all trials, and bits with few. Null: the states of other trials.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from benchmark import composed, cost_of, quiet
from linear_models import components, fit_linear_system, smooth, with_one
from scoreboard_methods import Trained, run_parts
from torch import Tensor

from connector.analysis.spike_scores import bits_per_spike, groups_of_neurons, poisson_log_likelihood
from connector.data.folds import fold
from connector.data.readers import read_recording
from connector.files import write_npz
from connector.lrrnn.spikes.baselines import poisson_regression
from connector.numerics import gaussian_window
from connector.score.results import Score
from connector.types import Recording

RANK, N_FEW, DRAWS = 2, 20, 8
_SD, _WINDOW = 5.0, 40  # bins: of the smoothing of counts, of the pieces that linear dynamics learn from
METHODS = ("ours, fit", "LDS", "PCA + ridge")


def session(path: Path) -> Recording:
    return read_recording(path, "rat")


def split(recording: Recording) -> tuple[Tensor, Tensor]:
    """Numbers of the neurons that methods see, and of those held out."""
    out = groups_of_neurons(recording.n_neurons)[0].sort().values
    seen = torch.ones(recording.n_neurons, dtype=torch.bool)
    seen[out] = False
    return seen.nonzero()[:, 0], out


def smoothed_roots(recording: Recording) -> Tensor:
    """Square roots of counts, smoothed within each trial, (trials, time, K) float64; zero past a trial's end."""
    window, mask = gaussian_window(recording.activity.shape[1], _SD), recording.mask.double()
    roots = recording.activity.double().sqrt() * mask[..., None]
    weight = torch.einsum("ts,ns->nt", window, mask).clamp_min(1e-9)
    return torch.einsum("ts,nsk->ntk", window, roots) / weight[..., None] * mask[..., None]


def states_of_ours(recording: Recording) -> Tensor:
    """Latent states (trials, time, R) that the package's low-rank RNN infers."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "seen.npz"
        arrays = {"spikes": recording.activity, "externalinputs": recording.inputs, "lengths": recording.lengths}
        arrays |= {"choices": recording.choices, "times": recording.trial_times_s}
        write_npz(path, {key: value for key, value in arrays.items() if value is not None})
        options = composed(
            "data=npz", f"data.path={path}", f"data.bin_s={recording.bin_s}", "stages=[lrrnn]", f"lrrnn.rank={RANK}",
            "trainer.progress=false",
        )  # fmt: skip
        _, store = run_parts(options, directory + "/run", None)
        return store.read_stage_inputs().latents.z


def states_of_components(recording: Recording, learned: Tensor) -> Tensor:
    """Principal components of the smoothed roots of the counts."""
    y, mask = smoothed_roots(recording), recording.mask
    mean, axes, _ = components(y[learned][mask[learned]][None], RANK)
    return (y - mean) @ axes


def states_of_linear_dynamics(recording: Recording, learned: Tensor) -> Tensor:
    """Smoothed states of linear dynamics with the recording's inputs, learned by expectation maximisation from pieces of 40
    bins of the square roots of the counts."""
    y, u, lengths = recording.activity.double().sqrt(), recording.inputs, recording.lengths
    pieces, inputs = [], []
    for first in (0, _WINDOW):
        long = learned[lengths[learned] >= first + _WINDOW]
        pieces.append(y[long, first : first + _WINDOW])
        inputs.append(None if u is None else u[long, first : first + _WINDOW])
    system, _ = fit_linear_system(torch.cat(pieces), None if u is None else torch.cat(inputs), RANK)
    z = y.new_zeros(*y.shape[:2], RANK)
    for length in lengths.unique().tolist():
        which = (lengths == length).nonzero()[:, 0]
        part = y[which, :length]
        z[which, :length] = smooth(system, part, with_one(None if u is None else u[which, :length], part)).mean
    return z


def co_smoothing(recording: Recording, z: Tensor, out: Tensor, learned: Tensor, test: Tensor) -> float:
    """Bits per spike of held-out neurons on test trials, predicted by a Poisson regression on states z that the trials
    ``learned`` were fitted to."""
    mask = recording.mask
    x = torch.cat([z.double(), torch.ones_like(z[..., :1], dtype=torch.float64)], -1)
    spread = x[..., :-1][mask].std(0).clamp_min(1e-9)
    x = torch.cat([x[..., :-1] / spread, x[..., -1:]], -1)
    counts = recording.activity[..., out]
    mean = counts[learned][mask[learned]].double().mean(0).clamp_min(1e-4)
    penalty = torch.tensor([1.0] * RANK + [1e-3])
    weights = poisson_regression(
        x[learned][mask[learned]], counts[learned][mask[learned]], penalty=penalty, scale=float(mean.mean())
    )[0]
    expected = float(mean.mean()) * torch.nn.functional.softplus(x[test] @ weights.T)
    nats = poisson_log_likelihood(expected, counts[test], mask[test])
    null = recording.activity[..., out][learned][mask[learned]].double().mean(0).clamp_min(1e-6)
    return bits_per_spike(nats, counts[test], mask[test], null)


def scored(recording: Recording, z: Tensor) -> dict[str, Score]:
    """Both measures with their nulls: states of other trials."""
    _, out = split(recording)
    parts = fold(recording.n_trials)
    learned, test = torch.cat([parts.train, parts.validation]), parts.test
    draws = [
        learned[torch.randperm(len(learned), generator=torch.Generator().manual_seed(i))[:N_FEW]] for i in range(DRAWS)
    ]
    other = z.roll(1, 0)

    def few(states: Tensor) -> float:
        return sum(co_smoothing(recording, states, out, some, test) for some in draws) / DRAWS

    return {
        "co_smoothing": Score(
            co_smoothing(recording, z, out, learned, test), co_smoothing(recording, other, out, learned, test)
        ),
        "few_shot": Score(few(z), few(other)),
    }


def run(method: str, path: Path) -> dict[str, Trained]:
    """One method on the session."""
    quiet(1)
    recording = session(path)
    seen, _ = split(recording)
    part, parts = recording.neurons(seen), fold(recording.n_trials)
    learned = torch.cat([parts.train, parts.validation])
    work: dict[str, Callable[[], Tensor]] = {
        "ours, fit": lambda: states_of_ours(part),
        "LDS": lambda: states_of_linear_dynamics(part, learned),
        "PCA + ridge": lambda: states_of_components(part, learned),
    }
    z, cost = cost_of(work[method])
    return {method: Trained(scored(recording, z), cost, cost.cpu_s)}
