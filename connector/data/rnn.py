"""Recurrent networks trained with torch: their weights, and the inputs to run them on or the activity that they gave."""

from __future__ import annotations

import contextlib
import math
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from connector.data.readers import Reader, require_format
from connector.data.recorded import RecordedArrays, recording_of
from connector.data.settings import data_option, memory_option, settled
from connector.errors import UserError
from connector.files import check_size, paths_of, read_arrays, read_saved

if TYPE_CHECKING:
    from torch import Tensor

    from connector.types import Recording, TrainedNetwork

_TRIALS = ("externalinputs", "rates", "lengths", "times", "choices")
_WEIGHTS = ("W", "B", "d", "c", "alpha")
_TASK = ("targets", "score_mask")
_OFTEN, _MOST_HELD = 0.05, 4  # inputs in which so many of the trials end are looked at as held; so many at most
_TORCH = tuple(
    f"{kind}_{of}{layer}" for kind in ("weight", "bias") for of in ("hh", "ih") for layer in ("_l0", "")
)  # "": RNNCell
_NONLINEARITY, _START = ("nonlinearity", "activation"), ("h0", "h_0")
_ACTIVITY = "numpy.savez(FILE, rates=r, externalinputs=u) and read them with data=npz"
_REMEDY = "save {'W': W, 'B': B, 'd': d, 'alpha': dt / tau, 'externalinputs': u} of tensors, or the rates: " + _ACTIVITY
_EXCHANGED = 50  # trials and samples on which exchanged axes are looked for, at most
_N_VISITED = 48  # samples from which the network is looked at
_AGREE = 0.05  # rms difference of rates, over their rms, up to which the weights are said to give them
_EXACT = 1e-3  # the same, up to which they hold no noise


@dataclass
class RnnOptions:
    """How a trained network is read: the options of ``data=rnn`` and keywords of :func:`load_rnn`."""

    activation: str | None = data_option(
        "nonlinearity phi of the neurons; null: the file's `nonlinearity`, or tanh", default=None
    )
    alpha: float | None = data_option(
        "time step in units of the time constant, dt / tau; null: the file's `alpha`, 1 for a torch.nn.RNN",
        above=0,
        at_most=1,
        default=None,
    )
    recorded_fraction: float = data_option(
        "neurons in the file as a share of the whole network", above=0, at_most=1, default=1.0
    )
    range_tolerance: float = data_option(
        "how far given rates may leave the range of phi: rms excess relative to half the range",
        at_least=0, default=0.3,
    )  # fmt: skip
    max_gigabytes: float = memory_option("largest size of the files, and of the rates")


class Weights(NamedTuple):
    """Of a network h' = -h + W phi(h) + B u + d: w (K, K), b (K, U), d (K,), and alpha or None; float64.

    ``discrete``: of a torch.nn.RNN, r[t] = phi(W r[t-1] + B u[t] + d). ``start``: h[0], of a torch.nn.RNN r[-1], (K,);
    ``origin`` says in notes where it is from.
    """

    w: np.ndarray
    b: np.ndarray
    d: np.ndarray
    alpha: float | None
    discrete: bool
    start: np.ndarray
    origin: str

    def run(self, u: np.ndarray, alpha: float, activation: str, *, late: bool | None = None) -> np.ndarray:
        """Rates (trials, time, K) float32 under inputs u (trials, time, U), from ``start``: h[t+1] = (1 - alpha) h[t] +
        alpha (W phi(h[t]) + B u[t] + d). ``late``: stored after u[t] acted, not before; None: as a torch.nn.RNN stores
        them, after, and others before."""
        import torch

        from connector.dynamics import activation as activation_named

        phi = activation_named(activation)
        w, b, d, u, h = (torch.from_numpy(x).double() for x in (self.w, self.b, self.d, u, self.start))
        h, late = h.expand(len(u), -1), self.discrete if late is None else late
        after = h if self.discrete else phi(h)
        rates = torch.zeros(*u.shape[:2], len(w))
        for t in range(u.shape[1]):
            before = after
            drive = before @ w.T + u[:, t] @ b.T + d
            h = phi(drive) if self.discrete else (1 - alpha) * h + alpha * drive
            after = h if self.discrete else phi(h)
            rates[:, t] = after if late else before
        return rates.numpy()


def load_rnn(
    path: str | os.PathLike | Sequence[str | os.PathLike],
    options: RnnOptions | None = None,
    *,
    name: str | None = None,
    **keywords,
) -> Recording:
    """The activity of a trained network, as a recording of rates.

    A file of ``torch.save`` or an npz holds the weights: a state dict of a ``torch.nn.RNN`` of one layer or a
    ``torch.nn.RNNCell``, with any prefix of the names, or W (K, K), B (K, U) and d or c (K,), the biases, of a network that
    filters its inputs. It may hold ``nonlinearity``, a text, and ``h0`` (K,), the initial state. The same file, or another,
    holds ``externalinputs`` (trials, time, U) to run it on, or the ``rates`` (trials, time, K) that it gave with them (each
    also a list of tensors, one a trial), and optionally ``lengths``; with the linear readout, O (O, K) and c (O,) or a
    ``torch.nn.Linear``, also ``targets`` (trials, time, O) and ``score_mask`` of that shape, where they count. Other keys are
    ignored and named in the notes.

    Args:
        path: the file, or a list of files; options: how to read; None: the defaults of :class:`RnnOptions`.
        name: of the recording; None: the first file's. keywords: options by their names.

    Raises:
        UserError: weights or inputs are missing or have other shapes; the nonlinearity is unknown; the file is damaged, or
            would have to be unpickled.
    """
    options = settled(RnnOptions, options, keywords)
    paths = paths_of(path)
    found: dict[str, np.ndarray] = {}
    for file in paths:
        for key, value in _read(file, options.max_gigabytes).items():
            if key in found:
                raise UserError("each name in one file", f"{key} in {file.name}, too")
            found[key] = value
    weights = weights_of(found)
    notes: list[str] = []
    readout = readout_of(found, len(weights.w), notes)
    named, naming = (options.activation, []) if options.activation else _activation_of(found)
    activation = named or "tanh"
    values = {key: np.asarray(found[key]) for key in _TRIALS if key in found}
    used = {*_TRIALS, *_WEIGHTS, *_TASK, *naming, *(() if readout is None else readout.keys)}
    ignored = [key for key in found if key not in used and _last(key) not in (*_TORCH, *_START)]
    if ignored:
        notes.append(f"keys not used: {', '.join(ignored)}")
    alpha = options.alpha or weights.alpha
    if alpha is None:
        raise UserError("the time step of the network, dt / tau", "none", "give data.alpha, or `alpha` in the file")
    off = _complete(values, weights, alpha, activation, options.max_gigabytes, notes)
    if named is None and not ("rates" in found and off < _AGREE):
        notes.append("tanh assumed for the neurons (data.activation)")
    told = SimpleNamespace(
        activation=activation, alpha=alpha, range_tolerance=options.range_tolerance, choice_values=None
    )
    recording = recording_of(RecordedArrays(values, notes, activation), told, None, name or paths[0].stem)
    notes.clear()
    trained = replace(_trained(weights, recording, found, readout, notes), noiseless=off < _EXACT)
    return replace(recording, trained=trained, notes=(*recording.notes, *notes))


def _read(path: os.PathLike, max_gigabytes: float) -> dict[str, np.ndarray]:
    """Arrays by name, of dictionaries in dictionaries joined by dots, texts among them; other objects are left out."""
    if require_format(path, "torch", "npz") == "npz":
        return read_arrays(path, max_gigabytes=max_gigabytes)[0]
    check_size(1e-9 * os.stat(path).st_size, max_gigabytes, "raise data.max_gigabytes if the memory is there")
    try:
        saved = read_saved(path, "a state dict of tensors")
    except UserError as error:
        refused = re.search(r"GLOBAL ([\w.]{1,100}) was not an allowed", str(error.__cause__))
        if not refused or not _whole(path):
            raise
        raise UserError(
            "a state dict of tensors, without other objects",
            f"{os.path.basename(path)}, which holds {refused[1]} and would have to be unpickled",
            "save tensors: torch.from_numpy(u) for an array, net.state_dict() for a module",
        ) from error
    return dict(_flat(saved, "", max_gigabytes))


def _whole(path: os.PathLike) -> bool:
    """Whether the checksums of a file of torch.save are right; False for a zip that is packed, which torch does not write."""
    with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
        return stored and archive.testzip() is None
    return False


def _flat(saved: Any, prefix: str, max_gigabytes: float, depth: int = 0) -> list[tuple[str, np.ndarray]]:
    import torch

    key, listed = prefix.removesuffix("."), isinstance(saved, (list, tuple))
    if isinstance(saved, Mapping) and depth < 10:
        return [x for k, value in saved.items() for x in _flat(value, f"{prefix}{k}.", max_gigabytes, depth + 1)]
    if isinstance(saved, str):
        return [(key, np.array(saved))]
    if listed and key in ("externalinputs", "rates", *_TASK):
        saved = _padded(key, saved, max_gigabytes)
    elif isinstance(saved, (int, float)) or (listed and saved and all(isinstance(x, (int, float)) for x in saved)):
        saved = torch.tensor(saved, dtype=torch.float64)
    if not isinstance(saved, torch.Tensor) or saved.is_complex():
        return []
    value = saved.detach().cpu()
    return [(key, (value.double() if value.dtype == torch.bfloat16 else value).numpy())]


def _padded(key: str, trials: Sequence[Any], max_gigabytes: float) -> Tensor:
    """Tensors (time, channels), one a trial, as one (trials, time, channels) float64, NaN past a trial's end."""
    import torch

    fit = [isinstance(x, torch.Tensor) and x.ndim == 2 and not x.is_complex() for x in trials]
    if not trials or not all(fit) or len({x.shape[1] for x in trials}) > 1:
        said = sorted({str(tuple(x.shape)) if isinstance(x, torch.Tensor) else type(x).__name__ for x in trials})
        raise UserError(
            f"{key} as a tensor (trials, time, channels), or a list of tensors (time, channels)",
            f"a list of {', '.join(said[:8]) or 'nothing'}",
        )
    size = len(trials) * max(len(x) for x in trials) * trials[0].shape[1]
    check_size(8e-9 * size, max_gigabytes, "give fewer trials")
    return torch.nn.utils.rnn.pad_sequence([x.detach().cpu().double() for x in trials], True, math.nan)


def _last(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def _activation_of(found: Mapping[str, np.ndarray]) -> tuple[str | None, list[str]]:
    """The nonlinearity that the file names, None without one, and the keys that name it."""
    from connector.dynamics import ACTIVATIONS

    keys = [key for key, value in found.items() if _last(key) in _NONLINEARITY and value.dtype.kind == "U"]
    names = {str(name).lower() for key in keys for name in np.ravel(found[key])}
    if len(names) > 1 or names - ACTIVATIONS.keys():
        said = ", ".join(repr(name[:40]) for name in sorted(names)[:8])
        raise UserError(f"one of {', '.join(ACTIVATIONS)} under {', '.join(keys)}", said, "give data.activation")
    return next(iter(names), None), keys


def weights_of(found: Mapping[str, np.ndarray]) -> Weights:
    """The weights among arrays by name; see :func:`load_rnn`.

    Raises:
        UserError: none that are understood, or shapes that do not fit each other.
    """
    matrices = [key for key in found if _last(key) in ("weight_hh_l0", "weight_hh")]
    more = [key for key in found if _last(key) in ("weight_hh_l1", "weight_hh_l0_reverse")]
    if more or len(matrices) > 1:
        raise UserError(
            "one network of one layer, run forward", ", ".join(more or matrices), f"save its rates: {_ACTIVITY}"
        )
    if matrices:
        prefix, layer = matrices[0].rsplit("weight_hh", 1)
        names, alpha, discrete = (matrices[0], f"{prefix}weight_ih{layer}"), 1.0, True
        w, b = found[names[0]], found.get(names[1])
        rows = w.shape[0] if w.ndim == 2 else 0
        smaller = any(_last(key).startswith("weight_hr") for key in found)  # proj_size, which only an LSTM has
        if rows and w.shape[1] and (smaller or rows in (3 * w.shape[1], 4 * w.shape[1])):
            gated = "torch.nn.LSTM" if smaller or rows == 4 * w.shape[1] else "torch.nn.GRU"
            remedy = f"save its rates: {_ACTIVITY}"
            raise UserError("a torch.nn.RNN, which is equation (1)", f"the weights of a {gated}", remedy)
        keys = (f"{prefix}bias_ih{layer}", f"{prefix}bias_hh{layer}")
        biases = [found[key] for key in keys if key in found]
    else:
        w, b, alpha, discrete, names = found.get("W"), found.get("B"), None, False, ("W", "B")
        size = None if w is None else w.shape[:1]
        biases = [found[key] for key in ("d", "c") if key in found and np.shape(found[key]) == size][:1]
        if "alpha" in found and found["alpha"].size == 1 and found["alpha"].dtype.kind in "biuf":
            alpha = found["alpha"].item()
    if w is None or b is None:
        there = ", ".join(f"{key} {np.shape(value)}" for key, value in list(found.items())[:8]) or "nothing"
        raise UserError("W (K, K) and B (K, U), or weight_hh_l0 and weight_ih_l0 of a torch.nn.RNN", there, _REMEDY)
    if w.ndim != 2 or w.shape[0] != w.shape[1] or not w.size:
        raise UserError(f"{names[0]} of shape (K, K)", str(w.shape))
    if b.ndim != 2 or len(b) != len(w):
        rows = "give W and B transposed if the network is r @ W + u @ B, else B alone" if len(w) in b.shape else ""
        raise UserError(f"{names[1]} of shape ({len(w)}, U)", str(b.shape), rows)
    if any(bias.shape != (len(w),) for bias in biases):
        raise UserError(f"biases of shape ({len(w)},)", ", ".join(str(bias.shape) for bias in biases))
    for what, value in zip((*names, *("biases" for _ in biases)), (w, b, *biases)):
        if value.dtype.kind not in "biuf" or not np.isfinite(value).all():
            raise UserError(f"finite real numbers in {what}", "others")
    d = sum((bias.astype(float) for bias in biases), np.zeros(len(w)))
    if alpha is not None and not 0 < alpha <= 1:
        raise UserError("alpha = dt / tau in (0, 1]", str(alpha))
    return Weights(w.astype(float), b.astype(float), d, alpha, discrete, *_start(found, len(w)))


def _start(found: Mapping[str, np.ndarray], n_neurons: int) -> tuple[np.ndarray, str]:
    """The state (K,) that trials start from, and what notes say of it."""
    keys = [key for key in found if _last(key) in _START]
    if not keys:
        return np.zeros(n_neurons), "from rest"
    h0 = found[keys[0]]
    if len(keys) > 1 or h0.size != n_neurons or h0.dtype.kind not in "biuf" or not np.isfinite(h0).all():
        raise UserError(
            f"one initial state of {n_neurons} finite numbers, the same in all trials",
            ", ".join(f"{key} {found[key].dtype} {found[key].shape}" for key in keys[:8]),
            "leave it out, and give the rates that the network gave",
        )
    return h0.reshape(-1).astype(float), f"from {_last(keys[0])} of the file"


class Readout(NamedTuple):
    """The linear readout of a network: weights (O, K), offset (O,), float64, and the names under which they were found."""

    weights: np.ndarray
    offset: np.ndarray
    keys: tuple[str, ...]

    def of(self, rates: np.ndarray) -> np.ndarray:
        """Outputs (trials, time, O) float32 of rates (trials, time, K)."""
        return (rates @ self.weights.T + self.offset).astype(np.float32)


def readout_of(found: Mapping[str, np.ndarray], n_neurons: int, notes: list[str]) -> Readout | None:
    """O and c, or the one linear layer that takes K rates, among arrays by name; None where there is none, or are several,
    which is noted.

    Raises:
        UserError: a readout of another shape.
    """
    layers = [
        key
        for key, value in found.items()
        if _last(key) == "weight" and np.ndim(value) == 2 and value.shape[1] == n_neurons
    ]
    if "O" in found:
        of_neurons = "d" not in found and np.shape(found.get("c")) == (n_neurons,) != np.shape(found["O"])[:1]
        name, offset = "O", None if of_neurons else "c"
    elif len(layers) == 1:
        name, offset = layers[0], layers[0].removesuffix("weight") + "bias"
    else:
        if layers:
            notes.append(
                f"the readout is ambiguous: {', '.join(layers)} take {n_neurons} rates each; none is used, give O and c"
            )
        return None
    weights, c = found[name], found.get(offset)
    c = np.zeros(weights.shape[:1]) if c is None else c
    if weights.ndim != 2 or weights.shape[1] != n_neurons or c.shape != weights.shape[:1]:
        raise UserError(f"a readout {name} of shape (outputs, {n_neurons})", f"{weights.shape}, offset {c.shape}")
    if not all(x.dtype.kind in "biuf" and np.isfinite(x).all() for x in (weights, c)):
        raise UserError(f"finite real numbers in the readout {name}", "others")
    return Readout(weights.astype(float), c.astype(float), (name, *(() if offset not in found else (offset,))))


def _trained(
    weights: Weights,
    recording: Recording,
    found: Mapping[str, np.ndarray],
    readout: Readout | None,
    notes: list[str],
) -> TrainedNetwork:
    """The network with its outputs on the recording's trials, and what they should have been."""
    import torch

    from connector.numerics import even_rows
    from connector.types import TrainedNetwork

    w, b, d = (torch.from_numpy(x) for x in (weights.w, weights.b, weights.d))
    rates = recording.activity.numpy()
    outputs = None if readout is None else readout.of(rates)
    task = dict.fromkeys(("targets", "scored"))
    for name, key in zip(task, _TASK, strict=True):
        value = found.get(key)
        if value is None:
            continue
        if outputs is None:
            notes.append(f"{key} not used: no readout O (outputs, {len(w)}) in the file")
        elif value.shape != outputs.shape or value.dtype.kind not in "biuf":
            raise UserError(f"{key} of the outputs' shape {outputs.shape}", f"{value.dtype} of shape {value.shape}")
        else:
            task[name] = value.astype(np.float32)
    if task["targets"] is not None:  # what was not told cannot be scored
        told = np.isfinite(task["targets"]) & (True if task["scored"] is None else task["scored"] > 0)
        task = {"targets": np.nan_to_num(task["targets"]), "scored": told}
    tensors = {k: None if v is None else torch.from_numpy(v) for k, v in task.items()}
    outputs = None if outputs is None else torch.from_numpy(outputs)
    visited = recording.activity[recording.mask].double()
    visited = visited[even_rows(len(visited), _N_VISITED)]
    held = held_inputs(recording, b.shape[1])
    more = {**tensors, "filters": not weights.discrete}
    return TrainedNetwork(w, b, d, torch.arange(len(w)), held, visited, outputs, **more)


def held_inputs(recording: Recording, n_inputs: int) -> Tensor:
    """The inputs in which trials end, the most frequent first: those of 5 % of the trials or more, four at most; zero where
    there are none. (C, U) float64."""
    import torch

    if recording.inputs is None:
        return torch.zeros(1, n_inputs, dtype=torch.float64)
    last = recording.inputs[torch.arange(recording.n_trials), recording.lengths - 1].double()
    values, count = torch.unique(last, dim=0, return_counts=True)
    order = count.argsort(descending=True, stable=True)[:_MOST_HELD]
    often = order[count[order] >= max(2, _OFTEN * len(last))]
    return values[often] if len(often) else last.new_zeros(1, n_inputs)


def _complete(
    values: dict[str, np.ndarray],
    weights: Weights,
    alpha: float,
    activation: str,
    max_gigabytes: float,
    notes: list[str],
) -> float:
    """Adds the network's own rates where there are none, and notes how far given ones are from these: the distance of rates
    from the network's own, over their size."""
    u, given = values.get("externalinputs"), values.get("rates")
    (k, n_inputs), own, off = weights.b.shape, None, math.inf
    if u is None and given is None:
        raise UserError(
            f"externalinputs (trials, time, {n_inputs}) to run the network on, or the rates that it gave", "neither",
            "add them to the file, or give another one beside: data.path=[NET,TRIALS]",
        )  # fmt: skip
    if u is not None:
        if u.ndim != 3 or u.shape[2] != n_inputs or 0 in u.shape or u.dtype.kind not in "biuf":
            raise UserError(f"externalinputs of shape (trials, time, {n_inputs})", f"{u.dtype} of shape {u.shape}")
        check_size(8e-9 * u.shape[0] * u.shape[1] * k, max_gigabytes, "give fewer trials")
        if "lengths" not in values and given is None:
            told = ~np.isnan(u).all(2)  # NaN: past a trial's end
            values["lengths"] = u.shape[1] - np.argmax(told[:, ::-1], axis=1)
        u = np.nan_to_num(u.astype(float))
        own = weights.run(u, alpha, activation)
        if given is None and not np.isfinite(own).all():
            raise UserError(
                "a network whose rates stay finite", f"rates that run away {weights.origin} under these inputs",
                "check data.activation and data.alpha",
            )  # fmt: skip
        if given is None and not np.ptp(own):
            raise UserError(
                f"inputs that move the network {weights.origin}", "rates that never vary",
                "check externalinputs, which may be zero, or give the `rates` of trials with other first states",
            )  # fmt: skip
    if given is None:
        values["rates"], off = own, 0.0
        notes.append(f"rates come from running the network of {k} neurons {weights.origin}")
    elif own is not None and given.shape == own.shape and given.dtype.kind in "biuf":
        off = _distance(own, given, values.get("lengths"))
        if not off < _AGREE:
            off = _explained(off, (u, given, values.get("lengths")), weights, (alpha, activation), notes)
    if values["rates"].ndim == 3 and values["rates"].shape[2] != k:
        raise UserError(f"rates of the network's {k} neurons", f"shape {values['rates'].shape}")
    return off


def _explained(
    off: float,
    seen: tuple[np.ndarray, np.ndarray, np.ndarray | None],
    weights: Weights,
    how: tuple[float, str],
    notes: list[str],
) -> float:
    """The distance of given rates from the network's own where these are ``off``: less if they were stored in another order, which
    is noted.

    Args:
        seen: inputs, rates and the trials' lengths or None; how: alpha and the activation.

    Raises:
        UserError: with axes exchanged, or W transposed, the network gives these rates.
    """
    u, given, lengths = seen
    late = not weights.discrete
    found = _distance(weights.run(u, *how, late=late), given, lengths)
    if found < _AGREE:
        order = "after the inputs of their sample acted" if late else "before the inputs of their sample act"
        notes.append(f"rates are those of the weights, stored {order}")
        return found
    few = [x.swapaxes(0, 1)[:_EXCHANGED, :_EXCHANGED] for x in (u, given)]
    if _distance(weights.run(few[0], *how), few[1]) < _AGREE:
        raise UserError(
            "externalinputs of (trials, time, U)", "(time, trials, U): exchanged, they give these rates",
            "exchange the first two axes of externalinputs and rates",
        )  # fmt: skip
    few, turned = [x[:_EXCHANGED] for x in (u, given)], weights._replace(w=weights.w.T)
    if any(_distance(turned.run(few[0], *how, late=x), few[1]) < _AGREE for x in (True, False)):
        raise UserError("W of a network W @ r", "its transpose, of r @ W: transposed, it gives these rates", "give W.T")
    notes.append(
        f"the weights, run {weights.origin} with these inputs, give other rates (rms difference {off:.2g} of their size). "
        "Possible causes: noise, other first states, axes in another order, another data.alpha or data.activation"
    )
    return off


def _distance(own: np.ndarray, given: np.ndarray, lengths: np.ndarray | None = None) -> float:
    """Rms difference where both are told, up to the trials' lengths, over the rms of ``own``."""
    seen = np.isfinite(given)
    if lengths is not None and lengths.shape == (len(given),):
        seen &= (np.arange(given.shape[1]) < lengths[:, None])[..., None]
    if not seen.any():
        return math.inf
    return float(np.sqrt(np.square(own - given)[seen].mean() / max(np.square(own[seen]).mean(), 1e-300)))


READER = Reader(RnnOptions, load_rnn, formats=("torch", "npz"), several=True)
