"""Which assumption of the model the rates contradict, and what to do about it: one sentence a cause, from the metrics alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from connector.report.numbers import percent

CAUSE, CHECK = "lrrnn/cause_", "lrrnn/check_"
ACTIVATION = "activation_"
_HELD_OUT = "of the squared error of held-out rates"


def named(metrics: Mapping[str, float]) -> bool:
    """Whether a cause was found."""
    return any(key.startswith(CAUSE) for key in metrics)


def of_causes(metrics: Mapping[str, float]) -> list[str]:
    """A sentence for each ``lrrnn/cause_NAME`` of the metrics, with its number and its remedy; without the full stop."""
    found = [key.removeprefix(CAUSE) for key in metrics if key.startswith(CAUSE)]
    return [
        _SENTENCES[name.split("_")[0] + "_" if name.startswith(ACTIVATION) else name](metrics, name) for name in found
    ]


def _removed(metrics: Mapping[str, float], check: str) -> str:
    value, error = metrics[CHECK + check], metrics[f"{CHECK}{check}_error"]
    return f"{percent(value)} {_HELD_OUT} (standard error {100 * error:.2g} %, nothing by chance)"


def _dimensions(metrics: Mapping[str, float], name: str) -> tuple[str, str, int]:
    number = int(metrics[CAUSE + name])
    return f"{number} more latent dimension{'s' * (number > 1)}", "remove" if number > 1 else "removes", number


def _rank(metrics: Mapping[str, float], name: str) -> str:
    if f"{CHECK}alpha" in metrics:
        return (
            "the rates of each step follow from those of the last and the inputs, so that no input is missing, but the fitted states "
            "do not hold all of them: lrrnn.rank is too low; raise it, or set lrrnn.rank=auto"
        )
    what, verb, number = _dimensions(metrics, name)
    said = (
        f"{what} {verb} {_removed(metrics, 'rank')}, the first alone"
        if number > 1
        else f"{what} {verb} {_removed(metrics, 'rank')}"
    )
    if f"{CHECK}added_noise" not in metrics:
        return f"{said}: lrrnn.rank is too low, or an input that drives the neurons is not recorded, which cannot be told apart here"
    return (
        f"{said}, and the next state follows from the last: lrrnn.rank is too low; raise it by {number}. An activation that is not "
        "among those of data.activation can look like this too"
    )


def _fewer(metrics: Mapping[str, float], name: str) -> str:
    value, error = metrics[CHECK + name], metrics[f"{CHECK}{name}_error"]
    return (
        f"the last latent dimension removes {percent(value)} {_HELD_OUT} (standard error {100 * error:.2g} %): the data do not show "
        "it, and lrrnn.rank may be too high; lower it by one, or set lrrnn.rank=auto"
    )


def _input(metrics: Mapping[str, float], name: str) -> str:
    what, verb, _ = _dimensions(metrics, name)
    return (
        f"{what} {verb} {_removed(metrics, 'rank')}, but in a step it moves by {metrics[CHECK + 'added_noise']:.2g} of its standard "
        "deviation in ways that neither states nor recorded inputs foretell: an input that drives the neurons is not recorded, "
        "or noise that they share; add it to the inputs. A higher lrrnn.rank describes it without explaining it"
    )


def _activation(metrics: Mapping[str, float], name: str) -> str:
    other, removed = name.removeprefix(ACTIVATION), _removed(metrics, name)
    others = [x for x in activations_as_good(metrics, other) if x != other]
    if others:
        return (
            f"{' or '.join([other, *others])} in place of the stated activation removes about {removed}: data.activation is wrong; "
            "these cannot be told apart here, choose the one that the neurons have"
        )
    return f"{other} in place of the stated activation removes {removed}: data.activation is wrong; set data.activation={other}"


def activations_as_good(metrics: Mapping[str, float], best: str) -> list[str]:
    """Activations that describe the rates as well as the best one, but for its standard error."""
    prefix = f"{CHECK}{ACTIVATION}"
    least = metrics[prefix + best] - metrics[f"{prefix}{best}_error"]
    keys = [key for key in metrics if key.startswith(prefix) and not key.endswith("_error")]
    return [key.removeprefix(prefix) for key in keys if metrics[key] >= least]


def _drift(metrics: Mapping[str, float], name: str) -> str:
    return (
        f"loadings that change over the session remove {_removed(metrics, 'drift')}: neurons change what they read, or how "
        "strongly; fit parts of the session one by one, or leave out the neurons that change"
    )


def _smoothing(metrics: Mapping[str, float], name: str) -> str:
    value, error = metrics[f"{CHECK}residual_correlation"], metrics[f"{CHECK}residual_correlation_error"]
    return (
        f"each neuron's own residuals at neighbouring samples are correlated by {value:.2f} (standard error {error:.1g}, 0 for "
        "noise of each sample): the rates were smoothed before, or their noise is slow; intervals are too narrow. Give them "
        "unsmoothed, or as counts under `spikes`"
    )


def _process_noise(metrics: Mapping[str, float], name: str) -> str:
    said = (
        f"in a step states move by {metrics[CHECK + 'process_noise']:.2g} of their standard deviation in ways that neither states "
        "nor recorded inputs foretell, which errors of reading do not explain: process noise, or an input that is not recorded, "
        "which cannot be told apart here. Add the input where there is one"
    )
    if "lrrnn/process_noise" in metrics:
        return f"{said}; noise that is independent from step to step has been sampled with the dynamics"
    return f"{said}; else take the intervals of nu, which are made for trajectories without such noise, as too narrow"


def _time_step(metrics: Mapping[str, float], name: str) -> str:
    return (
        f"output weights are more plausible by a log evidence of {metrics[CHECK + 'time_step_evidence']:.3g} if the time step is "
        f"{metrics[CHECK + 'time_step']:g} times the stated one: data.alpha = dt / tau is wrong; set it to "
        "that many times its value. Where the activation is a guess, another data.activation may be the cause instead; so may "
        "smoothing of rates that had no noise"
    )


def _alpha(metrics: Mapping[str, float], name: str) -> str:
    return (
        f"the rates of each step follow all but exactly from those of the last, and neurons relax by {metrics[CHECK + name]:.3g} of the "
        "way in a step: data.alpha = dt / tau is wrong; set it to that"
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
