"""Do states move as a network of the stated time step can move them, and as their own past says?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.signal import savgol_filter
from torch import Tensor

from connector.connectivity.nu.design import Design, observed_modes
from connector.connectivity.nu.regression import log_evidence
from connector.data.folds import Fold
from connector.dynamics import activation as activation_named
from connector.errors import UserError
from connector.lrrnn.observation import Observation
from connector.numerics import inverse_root, least_squares, random_rows, ridge
from connector.types import Latents, Loadings, Recording

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
N_NEURONS, N_STATES = 300, 3000
_WINDOWS, _ORDER = (15, 9, 5), 3  # of the polynomials that smooth noisy states: they know of no time step
_EXCESS = 1.3  # of the smoothing's residuals over the states' own errors, above which a window is too long
_EXACT = 1e-3  # share of a step that a whole network leaves unexplained
_WIDEST, _N_JUDGED = 1000, 20  # of neurons and inputs that foretell; neurons foretold
_HORIZON = 5  # steps over which residuals of one step are summed
_CUTOFF, _MOST_MODES = 1e-3, 100


def own_time_step(recording: Recording, fold: Fold) -> float | None:
    """alpha at which the potentials of a whole network relax, the stated one where that does as well; None where the rates of a
    step do not follow from those of the last, or do not show it.

    Without noise, and with all neurons recorded, h[t+1] = (1 - alpha) h[t] + W phi(h[t]) + B u[t] + C u[t+1] + d holds for some W
    of any rank, however inputs enter. It is fitted to training trials, and asked to be all but exact on validation trials.
    """
    phi, mask = activation_named(recording.activation), recording.mask
    width = recording.n_neurons + 2 * recording.n_inputs + 1
    if recording.kind != "rates" or phi.name == "relu" or width > _WIDEST:
        return None
    both, parts = mask[:, 1:] & mask[:, :-1], []
    few = random_rows(recording.n_neurons, _N_JUDGED)
    for part in (fold.train, fold.validation):
        now, then = (x[part][both[part]].double() for x in (recording.activity[:, :-1], recording.activity[:, 1:]))
        keep = random_rows(len(now), max(4000, 10 * width))
        columns = [now[keep], torch.ones(len(keep), 1).double()]
        if recording.inputs is not None:
            columns += [x[part][both[part]][keep].double() for x in (recording.inputs[:, :-1], recording.inputs[:, 1:])]
        h = [phi.inverse(Observation.of(phi.name).inside(x[keep][:, few], 1e-6)) for x in (now, then)]
        # Rounding of rates near the ends of phi's range hides their potentials.
        parts.append((torch.cat(columns, 1), *h, torch.minimum(*map(phi.derivative, h))))
    (x, now, then, slope), held = parts
    if len(x) < 3 * width or not len(held[0]):
        return None
    fitted = []
    for i in range(len(few)):
        of_neuron = slope[:, i, None] * torch.stack([now[:, i], then[:, i]], 1)
        fitted.append(ridge(slope[:, i, None] * x, of_neuron, 1e-12 * float(x.square().sum())))
    of_now, of_then = torch.stack(fitted).permute(2, 1, 0)
    left, moved = ((y - x @ of_y) * slope for y, of_y in ((now, of_now), (then, of_then)))
    kept = float((left * moved).sum() / left.square().sum().clamp_min(1e-300))
    left, moved = ((y - held[0] @ of_y) * held[3] for y, of_y in ((held[1], of_now), (held[2], of_then)))
    error, stated = (float((moved - share * left).square().sum()) for share in (kept, 1 - recording.alpha))
    exact = _EXACT * float(((held[2] - held[1]) * held[3]).square().sum())
    if stated < min(exact, 4 * error):
        return recording.alpha
    return 1 - kept if error < exact and 0 < 1 - kept <= 1.01 else None


class Innovations(NamedTuple):
    """What states do in a step beyond any function of state and input, in units of the states' variance.

    Attributes:
        variance, error: along the direction where it is largest, with its standard error over trials.
        noise: what errors of the states would add to the variance; it is taken off.
    """

    variance: float
    error: float
    noise: float


def smoothed(z: Tensor, lengths: Tensor, covariance: Tensor | None) -> Tensor:
    """States (trials, time, R) by cubics in a sliding window, the longest whose residuals the errors ``covariance``
    (trials, time, R, R) explain; as they are where there are no errors, or trials of under five samples."""
    if covariance is None:
        return z
    found = z
    for window in _WINDOWS:
        if int(lengths.min()) < window:
            continue
        found, squares, expected = z.clone(), 0.0, 0.0
        weight = float(savgol_filter(torch.eye(window).numpy(), window, _ORDER, axis=0)[window // 2, window // 2])
        for trial, length in enumerate(lengths.tolist()):
            smooth = savgol_filter(z[trial, :length].numpy(), window, _ORDER, axis=0, mode="interp")
            found[trial, :length] = torch.from_numpy(smooth)
            edge = window // 2
            inside = slice(edge, max(length - edge, edge))
            squares += float((z[trial, inside] - found[trial, inside]).square().sum())
            expected += (1 - weight) * float(covariance[trial, inside].diagonal(dim1=1, dim2=2).sum())
        if squares <= _EXCESS * expected:
            break
    return found


def time_step_evidence(
    latents: Latents, loadings: Loadings, activation: str, covariance: Tensor | None = None
) -> dict[float, float]:
    """Log evidence of the time step alpha times each of FACTORS, less that of alpha as it is stated.

    With a wrong step the drive that the states show, (z[t+1] - (1 - a) z[t]) / a, is the network's own plus a multiple of
    z. Neurons can supply that too, but only with output weights that are less plausible (:func:`log_evidence`).

    Args:
        latents: of training trials, their own states where ``covariance`` (trials, time, R, R) gives their errors.
        loadings: of the recorded neurons.
    """
    z = smoothed(latents.z.double(), latents.lengths, covariance)
    both = latents.mask[:, 1:] & latents.mask[:, :-1]
    now, then = z[:, :-1][both], z[:, 1:][both]
    u = None if latents.inputs is None else latents.inputs[:, :-1][both].double()
    keep = random_rows(len(now), N_STATES)
    now, then, u = now[keep], then[keep], None if u is None else u[keep]
    few = random_rows(loadings.n_neurons, N_NEURONS)
    steps = [factor for factor in FACTORS if latents.alpha * factor <= 1]
    found = log_evidence(
        now, u, then, loadings.map(lambda x: x[few]), activation=activation, alphas=[latents.alpha * f for f in steps]
    )
    stated = found[steps.index(1.0)]
    return {factor: value - stated for factor, value in zip(steps, found)}


def innovations(
    latents: Latents, loadings: Loadings, activation: str, covariance: Tensor | None = None, horizon: int = _HORIZON
) -> Innovations:
    """Variance of the states' own noise, from the growth of residuals with the horizon.

    The drift, the mean change in a step given state and input, is a linear combination of the rates of neurons, fitted to
    smoothed states. Changes over ``horizon`` steps less the drift on the way have the variance horizon Q + 2 S, with Q what
    is sought and S the variance of the states' errors, known or zero. The direction comes from half of the trials, Q along it
    from the others.

    Args:
        latents, loadings, activation, covariance: as for :func:`time_step_evidence`.

    Raises:
        UserError: a half of the trials without as many samples.
    """
    mask, rank = latents.mask, latents.rank
    scale = inverse_root(latents.z[mask].double() - latents.z[mask].double().mean(0))
    drift = _drift(latents, smoothed(latents.z.double(), latents.lengths, covariance), loadings, activation)
    n = min(horizon, mask.shape[1] - 1)
    whole = mask.unfold(1, n + 1, 1).all(-1).double()  # (trials, windows)
    moved = latents.z[:, n:] - latents.z[:, :-n] - drift.unfold(1, n, 1).sum(-1)
    moved = moved @ scale
    count = whole.sum(1)
    if not count[0::2].sum() * count[1::2].sum() > 0:
        raise UserError(f"{n + 1} successive samples in two trials or more", f"{int((count > 0).sum())} such trials")
    total = torch.einsum("ntr,nts,nt->nrs", moved, moved, whole) / n
    noise = torch.zeros(rank, rank, dtype=torch.float64)
    if covariance is not None:
        stated = scale @ covariance[mask].mean(0) @ scale
        noise = 2 / n * stated * _understated((latents.z[:, 1:] - latents.z[:, :-1] - drift) @ scale, mask, stated)
    variance, error, own = 0.0, 0.0, 0.0
    for half in (0, 1):
        fit, held = total[half::2].sum(0) / count[half::2].sum(), slice(1 - half, None, 2)
        way = torch.linalg.eigh(fit - noise).eigenvectors[:, -1]
        along = torch.einsum("nrs,r,s->n", total[held], way, way)
        mean, of_noise = float(along.sum() / count[held].sum()), float(way @ noise @ way)
        variance, own = variance + (mean - of_noise) / 2, own + of_noise / 2
        error += float((along - mean * count[held]).square().sum()) / (2 * float(count[held].sum())) ** 2
    return Innovations(variance, error**0.5, own)


def _understated(errors: Tensor, mask: Tensor, stated: Tensor) -> float:
    """Factor, 1 or more, by which errors of the states exceed those stated, (R, R): minus the covariance of successive
    ``errors`` (trials, time - 1, R) of one step, to which noise of the states does not contribute."""
    three = (mask[:, 2:] & mask[:, 1:-1] & mask[:, :-2])[..., None]
    returned = -(errors[:, 1:] * errors[:, :-1] * three).sum() / three.sum().clamp_min(1)
    return max(1.0, float(returned / stated.diagonal().sum().clamp_min(1e-300)))


def _drift(latents: Latents, z: Tensor, loadings: Loadings, activation: str) -> Tensor:
    """(trials, time - 1, R) mean change from each sample to the next, given the smoothed state z and the input."""
    both = latents.mask[:, 1:] & latents.mask[:, :-1]
    now, change = z[:, :-1][both], (z[:, 1:] - z[:, :-1])[both]
    u = None if latents.inputs is None else latents.inputs[:, :-1][both].double()
    pool = loadings.map(lambda x: x[random_rows(loadings.n_neurons, N_NEURONS)].double())
    rows = random_rows(len(now), N_STATES)
    design = Design(activation_named(activation), pool, now, u)
    part = Design(design.phi, pool, now[rows], None if u is None else u[rows])
    v = observed_modes(part, change[rows], _CUTOFF, _MOST_MODES).v
    features = torch.cat([design.times(v), now, torch.ones_like(now[:, :1])], 1)
    features = features / features.square().mean(0).sqrt().clamp_min(1e-300)
    drift = torch.zeros_like(z[:, 1:])
    drift[both] = features @ least_squares(features, change)
    return drift
