"""The posterior of nu as it is kept: from the posterior of the drive's coefficients to nu at any loading."""

from __future__ import annotations

import torch

from connector.connectivity.nu.mean import TrajectoryMean
from connector.connectivity.nu.prior import Posterior
from connector.shooting import Field
from connector.types import Loadings


def assemble(
    posterior: Posterior, components, field: Field, loadings: Loadings, activation: str, width_factor: float = 1.0
) -> TrajectoryMean:
    """nu with intervals and draws, whatever the likelihood that ``posterior`` was made with.

    Args:
        components: (kernel's number, log amplitudes (4,), weight) each, as ``posterior.mixture`` gives them.
        field: B(z, u), of whose coefficients c the posterior is. loadings: of the recorded neurons.
        activation: name of phi. width_factor: widths of intervals and draws in units of the posterior's.
    """
    prior, w, rank = posterior.prior, posterior.w, loadings.rank
    where, pool = prior.whitened, prior.pool
    used = sorted({i for i, _, _ in components})
    by_output = torch.einsum("npq,qr->rnp", w.view(len(w), -1, rank), prior.gauge)
    coefficients, roots, amplitudes = [], [], []
    for i, theta, _ in components:
        size = theta.exp()
        if posterior.grid[i][0] == "none":
            size = size * torch.tensor([1.0, 0.0, 1.0, 1.0]).to(size)
        factor = torch.linalg.cholesky(torch.einsum("k,kij->ij", size, posterior.parts[i]))
        coefficients.append((w.T @ torch.cholesky_solve(posterior.d, factor)).view(-1, rank))
        roots.append(torch.linalg.solve_triangular(factor, by_output, upper=False))
        amplitudes.append(size)
    values = {
        "rank": loadings.rank,
        "n_inputs": loadings.n_inputs,
        "has_bias": loadings.has_bias,
        "activation": activation,
        "odd": where.odd,
        "estimand": "folded" if where.odd else "mean",
        "width_factor": float(width_factor),
        "kernels": [list(posterior.grid[i]) for i in used],
        "summary": {},
    }
    sizes = torch.stack(amplitudes)
    tensors = {
        "location": where.location,
        "whitening": where.whitening,
        "gauge": prior.gauge,
        "centres": where.centres,
        "linear_weights": prior.linear_weights,
        "projections": torch.stack([posterior.projections[i] for i in used]),
        "kernel_index": torch.tensor([used.index(i) for i, _, _ in components]),
        "weights": torch.tensor([weight for _, _, weight in components], dtype=torch.float64),
        "amplitudes": sizes[:, :3],
        "coefficients": torch.stack(coefficients),
        "roots": torch.stack(roots),
        # of which draws are made
        "noise": sizes[:, 3],
        "data": posterior.d[:, 0],
        "data_weights": w,
        "linear_part": prior.linear,
        "white_part": prior.white,
        "curved_parts": torch.stack([posterior.curved[i] for i in used]),
        "anchors": field.neurons.stack().double(),
        "mixing": field.mixing,
    }
    if pool.population is not None:
        tensors |= {f"population_{name}": part for name, part in pool.population._asdict().items()}
    return TrajectoryMean(values, {name: tensor.to(w.device).clone() for name, tensor in tensors.items()})


def summary(model: TrajectoryMean, posterior: Posterior, components, loadings: Loadings) -> dict:
    """Plain values of what was found; ``loadings`` of the recorded neurons, 500 of which stand for all."""
    rows = loadings.stack()[:500]
    mean, variance = model.mean(rows), model.variance(rows)
    error = float(variance.sum() / (variance.sum() + mean.square().sum()).clamp_min(1e-300))
    determined = function = 0.0
    for i, log_amplitudes, weight in components:
        parts = log_amplitudes.exp()[:, None, None] * posterior.parts[i]
        inverse = torch.linalg.inv(parts.sum(0))
        determined += weight * float(len(inverse) - (inverse * parts[3]).sum())
        function += weight * float((inverse * (parts[0] + parts[1])).sum())
    by_kernel = [sum(w for i, _, w in components if i == j) for j in range(len(posterior.grid))]
    family, width = posterior.grid[max(range(len(by_kernel)), key=by_kernel.__getitem__)]
    return {
        "estimator": "trajectories",
        "estimand": model.estimand,
        "kernel": family,
        "width": width,
        "kernel_weight": max(by_kernel),
        "n_kernels": sum(w > 0 for w in by_kernel),
        "n_components": len(components),
        "evidence": float(torch.logsumexp(posterior.found.evidence, 0)),
        "own_variance": float(model.spread.trace()) / model.rank,
        "n_modes": posterior.prior.v.shape[1],
        "determined_modes": determined / model.rank,
        "function_modes": function / model.rank,
        "predicted_error": error,
        "odd": model.values["odd"],
    }
