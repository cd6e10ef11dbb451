"""Which assumption of the model the rates contradict, and what to do about it, from the metrics alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from connector.report.nulls import TO_DO
from connector.report.numbers import percent

CAUSE, CHECK = "lrrnn/cause_", "lrrnn/check_"
ACTIVATION = "activation_"
_HELD_OUT = "of the squared error of held-out rates"
_HELD_OUT_SPIKES = "of what the latent states explain of held-out neurons' spikes"
_SPIKES = "lrrnn/bits_per_spike"  # a metric of spikes alone


def named(metrics: Mapping[str, float]) -> bool:
    """Whether a cause was found that leaves nu open; spikes leave it open by themselves."""
    return _SPIKES not in metrics and any(key.startswith(CAUSE) for key in metrics)


def of_causes(metrics: Mapping[str, float]) -> list[str]:
    """A text for each ``lrrnn/cause_NAME`` of the metrics, with its number and its remedy."""
    found = [key.removeprefix(CAUSE) for key in metrics if key.startswith(CAUSE)]
    return [
        _SENTENCES[name.split("_")[0] + "_" if name.startswith(ACTIVATION) else name](metrics, name) for name in found
    ]


def _removed(metrics: Mapping[str, float], check: str) -> str:
    value, error = metrics[CHECK + check], metrics[f"{CHECK}{check}_error"]
    what = _HELD_OUT_SPIKES if _SPIKES in metrics else _HELD_OUT
    return f"{percent(value)} {what} (standard error {100 * error:.2g} %; chance: none)"


def _dimensions(metrics: Mapping[str, float], name: str) -> tuple[str, int]:
    """How many dimensions are missing, and what they remove."""
    number = int(metrics[CAUSE + name])
    if _SPIKES in metrics:
        return f"1 more latent dimension adds {_removed(metrics, 'rank')}.", number
    if number == 1:
        return f"1 more latent dimension removes {_removed(metrics, 'rank')}.", number
    return f"{number} more latent dimensions are missing. The first removes {_removed(metrics, 'rank')}.", number


def _other_rank(metrics: Mapping[str, float], by: int) -> str:
    """What to do about a rank that is too low (``by`` 1 or more) or too high (-1); ``auto`` is no remedy for its own choice."""
    chosen = metrics.get("lrrnn/rank_chosen")
    if chosen is not None:
        return f"set lrrnn.rank={int(chosen) + by} in place of auto, which chose {int(chosen)}"
    return f"{f'raise it by {by} or more' if by > 0 else 'lower it by one'}, or set lrrnn.rank=auto"


def _rank(metrics: Mapping[str, float], name: str) -> str:
    if f"{CHECK}alpha" in metrics:
        remedy = _other_rank(metrics, int(metrics[CAUSE + name]))
        return (
            "The rates of each step follow from those of the last and the inputs, so no input is missing. The fitted states do not "
            f"hold all of them, so lrrnn.rank is too low.{TO_DO}{remedy}."
        )
    said, number = _dimensions(metrics, name)
    if f"{CHECK}added_noise" not in metrics:
        return (
            f"{said} Either lrrnn.rank is too low, or an input that drives the neurons is not recorded. These data cannot tell "
            f"which.{TO_DO}raise lrrnn.rank by {number}, or add the input where there is one."
        )
    return (
        f"{said} With it the next state follows from the last, so lrrnn.rank is too low.{TO_DO}raise it by {number}. An activation "
        "that data.activation does not offer can look the same."
    )


def _fewer(metrics: Mapping[str, float], name: str) -> str:
    verb = "adds" if _SPIKES in metrics else "removes"
    does = "makes the prediction of held-out neurons worse"
    if metrics[CHECK + name] >= 0:
        does = f"{verb} {_removed(metrics, name)}"
    return (
        f"The last latent dimension {does}. The data do not "
        f"show it, and lrrnn.rank may be too high.{TO_DO}{_other_rank(metrics, -1)}."
    )


def _input(metrics: Mapping[str, float], name: str) -> str:
    said, _ = _dimensions(metrics, name)
    return (
        f"{said} In one step it moves by {metrics[CHECK + 'added_noise']:.2g} of its standard deviation in ways that neither "
        "states nor recorded inputs predict. An input that drives the neurons is not recorded, or the neurons share noise."
        f"{TO_DO}add it to the inputs. A higher lrrnn.rank describes it without explaining it."
    )


def _activation(metrics: Mapping[str, float], name: str) -> str:
    other, removed = name.removeprefix(ACTIVATION), _removed(metrics, name)
    others = [x for x in activations_as_good(metrics, other) if x != other]
    if others:
        return (
            f"Replacing the stated activation by {' or '.join([other, *others])} removes about {removed}. data.activation is "
            f"wrong.{TO_DO}choose the one of these that the neurons have; the data cannot tell them apart."
        )
    return (
        f"Replacing the stated activation by {other} removes {removed}. data.activation is wrong.{TO_DO}set "
        f"data.activation={other}."
    )


def activations_as_good(metrics: Mapping[str, float], best: str) -> list[str]:
    """Activations that describe the rates as well as the best one, but for its standard error."""
    prefix = f"{CHECK}{ACTIVATION}"
    least = metrics[prefix + best] - metrics[f"{prefix}{best}_error"]
    keys = [key for key in metrics if key.startswith(prefix) and not key.endswith("_error")]
    return [key.removeprefix(prefix) for key in keys if metrics[key] >= least]


def _drift(metrics: Mapping[str, float], name: str) -> str:
    return (
        f"Letting the loadings change over the session removes {_removed(metrics, 'drift')}. Neurons change what they read, "
        f"or how strongly.{TO_DO}fit parts of the session separately, or leave out the neurons that change."
    )


def _smoothing(metrics: Mapping[str, float], name: str) -> str:
    value, error = metrics[f"{CHECK}residual_correlation"], metrics[f"{CHECK}residual_correlation_error"]
    return (
        f"Each neuron's residuals at neighbouring samples correlate by {value:.2f} (standard error {error:.1g}; independent "
        "noise: 0). The rates were smoothed, or their noise is slow. The intervals are too narrow."
        f"{TO_DO}give unsmoothed rates, or counts under `spikes`."
    )


def _process_noise(metrics: Mapping[str, float], name: str) -> str:
    said = (
        f"In one step states move by {metrics[CHECK + 'process_noise']:.2g} of their standard deviation in ways that neither "
        "states nor recorded inputs predict, nor errors of reading explain. This is process noise or an unrecorded input; these "
        "data cannot tell which."
    )
    add = "add the input where there is one"
    if "lrrnn/process_noise" in metrics:
        return f"{said} Noise that is independent from step to step was sampled with the dynamics.{TO_DO}{add}."
    return f"{said}{TO_DO}{add}; else take the intervals of nu as too narrow, since they assume no such noise."


def _time_step(metrics: Mapping[str, float], name: str) -> str:
    step = f"{metrics[CHECK + 'time_step']:g}"
    return (
        f"Output weights are more plausible with {step} times the stated time step (log evidence "
        f"{metrics[CHECK + 'time_step_evidence']:.2g}; equal: 0). Either data.alpha = dt / tau is wrong, or nu is not as smooth as the "
        f"prior expects. These data cannot tell which.{TO_DO}if the time constant is a guess, multiply data.alpha by {step}; else "
        "take nu as open. If data.activation is a guess, check that first; smoothing of rates without noise can look the same."
    )


def _alpha(metrics: Mapping[str, float], name: str) -> str:
    alpha = f"{metrics[CHECK + name]:.3g}"
    return (
        f"The rates of each step follow almost exactly from those of the last, and neurons relax by {alpha} of the way in one "
        f"step. data.alpha = dt / tau is wrong.{TO_DO}set data.alpha={alpha}."
    )


_SENTENCES: dict[str, Callable[[Mapping[str, float], str], str]] = {
    "rank": _rank,
    "fewer": _fewer,
    "input": _input,
    ACTIVATION: _activation,
    "drift": _drift,
    "smoothing": _smoothing,
    "process_noise": _process_noise,
    "time_step": _time_step,
    "alpha": _alpha,
}
