"""What a finished stage says of each recorded neuron, and of each mode of their activity, as tables."""

from __future__ import annotations

import torch
from torch import Tensor

from connector.data.modules import RecordingDataModule
from connector.dynamics import activation, potentials
from connector.numerics import even_rows
from connector.report.page import TableData
from connector.runs.options import Options
from connector.runs.store import RunStore

_MODE_STATES = 500
_MODES = 50


def result_tables(options: Options, store: RunStore, data: RecordingDataModule) -> dict[str, TableData]:
    """What a finished stage says of each recorded neuron, and of each mode of their activity.

    ``neurons``: loadings with the standard deviations of their errors, gains and offsets of rates on their own scale, output weights of the fitted low-rank RNN, and nu
    with its interval at the neuron's true loadings, given their estimates and errors, each as far as the run has it. ``modes``: principal components of
    phi at the training states: the eigenvalue g_j of (K/T) X X^T with X = phi / K,
    its share in their sum, and g_j / (g_j + lambda), the share to which the data fix the mode, where the estimate of nu has one lambda.
    """
    if not store.latents_file.exists():
        return {}
    inputs = store.read_stage_inputs()
    loadings, rows = inputs.loadings, inputs.loadings.stack().double()
    rank, n_inputs = inputs.latents.rank, 0 if loadings.b is None else loadings.b.shape[1]
    names = [f"m_{i + 1}" for i in range(rank)] + [f"b_{i + 1}" for i in range(n_inputs)]
    names += ["d"] if loadings.d is not None else []
    columns: dict[str, Tensor] = dict(zip(names, rows.T))
    if inputs.loadings_covariance is not None:
        sd = inputs.loadings_covariance.diagonal(dim1=1, dim2=2).sqrt()
        columns |= {f"{name} sd": values for name, values in zip(names, sd.T)}
    if inputs.scale is not None:
        columns |= {"gain": inputs.scale.gain, "gain relative sd": inputs.scale.errors[:, 0]}
        columns |= {"offset": inputs.scale.offset, "offset sd": inputs.scale.gain * inputs.scale.errors[:, 1]}
    if inputs.n is not None:
        columns |= {f"n_{i + 1} fitted": values for i, values in enumerate(inputs.n.T)}
    lam = None
    if store.connectivity_file.exists() and "outputs" in store.stages():
        distribution = store.read_connectivity()
        lam = distribution.summary.get("lambda")
        has_posterior = options.connectivity.estimator != "ridge"
        found = distribution.diagnose(loadings, errors=inputs.loadings_covariance) if has_posterior else None
        nu = distribution.conditional_mean(loadings) if found is None else found.nu
        columns |= {f"nu_{i + 1}": values for i, values in enumerate(nu.T)}
        if found is not None:
            for i in range(rank):
                columns |= {f"nu_{i + 1} low": found.low[:, i], f"nu_{i + 1} high": found.high[:, i]}
            columns["certainty"] = found.certainty
    neurons = data.recording.neuron_names or [str(i) for i in range(len(rows))]
    numbers = torch.stack([column.double() for column in columns.values()], dim=1).tolist()
    z, u, _ = inputs.latents.trials(inputs.fold.train).samples()
    keep = even_rows(len(z), _MODE_STATES)
    phi = activation(inputs.activation)(potentials(loadings, z[keep], None if u is None else u[keep])).double()
    g = torch.linalg.eigvalsh(phi @ phi.T).flip(0).clamp_min(0) / phi.numel()
    modes = [
        [j + 1, float(g[j]), float(g[j] / g.sum()), *([] if lam is None else [float(g[j] / (g[j] + lam))])]
        for j in range(min(_MODES, *phi.shape))
    ]
    heads = ("mode", "eigenvalue", "share", *(() if lam is None else ("fixed by the data",)))
    return {
        "neurons": TableData(("neuron", *columns), [[name, *row] for name, row in zip(neurons, numbers)]),
        "modes": TableData(heads, modes),
    }
