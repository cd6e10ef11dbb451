"""Inputs as a network takes them: at once, as equation (1) has them, or through its neurons' own time constant.

Most trained networks filter their inputs: dh/dt = -h + W phi(h) + B u + d. Their potentials are h = M z + B v + d with

    v[t+1] = (1 - alpha) v[t] + alpha u[t],    v[0] = 0,

so that equation (1) with v in place of u is theirs, and exact as far as W has the rank of M.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from connector.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from connector.types import Recording

INPUT_KINDS = ("instant", "filtered", "both")  # the simplest first


def filtered_inputs(u: Tensor, alpha: float, kind: str = "filtered") -> Tensor:
    """Convert inputs u (..., time, U) of whole trials into those that a network with this ``kind`` of inputs takes.

    Args:
        alpha: Euler step of the network in time constants, dt / tau.
        kind: "filtered": v of the same shape, zero at a trial's start; "both": u and v side by side, (..., time, 2 U);
            "instant": u itself. A constant input comes to v = u in time: that is what its fixed points go with.

    Raises:
        UserError: another kind, or inputs without an axis of time.
    """
    import torch

    if kind not in INPUT_KINDS:
        raise UserError(f"a kind of inputs among {', '.join(INPUT_KINDS)}", repr(kind))
    if u.ndim < 2:
        raise UserError("inputs u of shape (..., time, U)", str(tuple(u.shape)))
    if kind == "instant":
        return u
    states = [torch.zeros_like(u[..., 0, :])]
    for t in range(u.shape[-2] - 1):
        states.append((1 - alpha) * states[-1] + alpha * u[..., t, :])
    v = torch.stack(states, -2)
    return v if kind == "filtered" else torch.cat([u, v], -1)


def with_inputs(recording: Recording, kind: str) -> Recording:
    """The recording with its inputs as a network of this ``kind`` of inputs takes them (:func:`filtered_inputs`); zero past
    a trial's end, where nothing is known.

    Raises:
        UserError: inputs that are of another kind already.
    """
    import torch

    if recording.inputs is None or kind == recording.input_kind:
        return recording
    if recording.input_kind != "instant":
        raise UserError("a recording with its inputs as they were given", f"{recording.input_kind} inputs")
    inputs = filtered_inputs(recording.inputs, recording.alpha, kind)
    inputs = torch.where(recording.mask[..., None], inputs, 0.0)
    own = recording.input_names or tuple(f"input {i + 1}" for i in range(recording.n_inputs))
    names = tuple(f"{name}, filtered" for name in own)
    names = names if kind == "filtered" else own + names
    return replace(recording, inputs=inputs, input_names=names, input_kind=kind)
