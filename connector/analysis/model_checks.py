"""Which assumption of the model do recorded rates contradict? One statistic for each, in the order in which they hide each
other: a readout that is wrong moves the states, smoothed activity hides their noise, and a time step can be judged of states
that are right.

Causes, as :attr:`ModelChecks.causes` names them: "activation_NAME", the one that fits; "rank", states of which the next follows from
the last; "fewer", a dimension that nothing shows; "input", a dimension that does not follow from anything recorded; "drift"; "smoothing"; "process_noise";
"time_step".
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

import torch

from connector.analysis.readout_checks import DRIFT, RANK, ReadoutChecks, check_readout, states_of
from connector.analysis.step_checks import Innovations, innovations, own_time_step, time_step_evidence
from connector.errors import UserError
from connector.lrrnn.handover import FittedDynamics
from connector.types import Recording

INPUT = "input"
_MOST_SAMPLES = 6000  # of training trials, from which steps are judged
LEAST_EVIDENCE, _NOISY = (
    10.0,
    3.0,
)  # log evidence that another time step has to gain; times that where states carry noise
LEAST_SD, LEAST_RATIO, LEAST_SHARE = (
    0.03,
    4.0,
    0.5,
)  # of innovations: sd, over the standard error, over the states' errors
LEAST_FACTOR = 1.3  # by which alpha is off, before it is told of
UNFORESEEN = 0.1  # sd of innovations in an added dimension, above which it is no further state
LEAST_CORRELATION, LEAST_LEFT = 0.1, 1e-3  # of residuals that are this share of the rates' variance
LEAST_FILLED = 0.6  # of the directions that noise of each neuron would fill: below, neurons share what is left


@dataclass(frozen=True)
class ModelChecks:
    """What :func:`check_model` finds.

    Attributes:
        readout: changes of the readout that help on held-out trials.
        steps: log evidence of the time step times each factor over that of the stated one; empty where states are wrong.
        innovations: of the states as they were fitted; added: of the states with the dimensions that help, or None.
    """

    readout: ReadoutChecks
    steps: dict[float, float]
    innovations: Innovations
    added: Innovations | None

    @property
    def smoothed(self) -> bool:
        """Whether each neuron by itself has residuals that last."""
        return self.slow_residuals and self.readout.fitted.filled > LEAST_FILLED

    @property
    def last_is_idle(self) -> bool:
        """Whether held-out rates are predicted as well without the last of the latent dimensions."""
        last = self.readout.last
        return last is not None and last.idle

    @property
    def slow_residuals(self) -> bool:
        """Whether residuals last for longer than a sample, which moves the states."""
        found = self.readout.fitted
        clear = found.correlation > max(LEAST_CORRELATION, 4 * found.correlation_error)
        return clear and self.readout.left > LEAST_LEFT

    @property
    def causes(self) -> tuple[str, ...]:
        """Names of what the data contradict, the clearest first; () where nothing does."""
        if self.last_is_idle:  # what helps beside it may do no more than hold the idle dimension still
            return ("fewer",)
        found = [x if x in (RANK, DRIFT) else f"activation_{x}" for x in dict.fromkeys(self.readout.adopted)]
        if self.added is not None and RANK in found and is_clear(self.added) and self.added.variance > UNFORESEEN**2:
            found[found.index(RANK)] = INPUT
        if self.smoothed:
            found.append("smoothing")
        if not found and is_clear(self.innovations):
            found.append("process_noise")
        least = LEAST_EVIDENCE * (_NOISY if "process_noise" in found else 1.0)
        if self.steps and max(self.steps.values()) > least:
            found.append("time_step")
        return tuple(found)

    def metrics(self) -> dict[str, float]:
        """The numbers by the names of the glossary; ``lrrnn/cause_NAME`` for each cause that was found (1, or how many
        dimensions are missing)."""
        found = {}
        for change, gain in self.readout.gains.items():
            name = change if change in (RANK, DRIFT) else f"activation_{change}"
            found |= {f"lrrnn/check_{name}": gain.share, f"lrrnn/check_{name}_error": gain.error}
        if self.readout.last is not None:
            found |= {"lrrnn/check_fewer": self.readout.last.share, "lrrnn/check_fewer_error": self.readout.last.error}
        fitted, own = self.readout.fitted, self.innovations
        if self.readout.left > LEAST_LEFT:
            found["lrrnn/check_residual_correlation"] = fitted.correlation
            found["lrrnn/check_residual_correlation_error"] = fitted.correlation_error
        found["lrrnn/check_process_noise"] = own.variance**0.5 if own.variance > 0 else 0.0
        if self.added is not None:
            found["lrrnn/check_added_noise"] = self.added.variance**0.5 if self.added.variance > 0 else 0.0
        if self.steps:
            best = max(self.steps, key=self.steps.get)
            found |= {"lrrnn/check_time_step": best, "lrrnn/check_time_step_evidence": self.steps[best]}
        missing = self.readout.adopted.count(RANK)
        return found | {f"lrrnn/cause_{x}": float(missing if x in (RANK, INPUT) else 1) for x in self.causes}


def checks_of(recording: Recording, fit: FittedDynamics) -> dict[str, float]:
    """:meth:`ModelChecks.metrics` of rates; nothing of spikes, two-valued activity or rates behind an indicator, or where data are too few."""
    if recording.kind != "rates" or fit.decay is not None:
        return {}
    found = {}
    with contextlib.suppress(UserError, torch.linalg.LinAlgError):
        found = check_model(recording, fit).metrics()
    with contextlib.suppress(torch.linalg.LinAlgError):
        alpha = own_time_step(recording, fit.fold)
        if alpha is not None:
            found = _without_unforeseen(found) | {"lrrnn/check_alpha": alpha}
        if alpha is not None and not 1 / LEAST_FACTOR < alpha / recording.alpha < LEAST_FACTOR:
            found = {key: value for key, value in found.items() if not key.startswith("lrrnn/cause_")}
            found["lrrnn/cause_alpha"] = 1.0
    return found


def _without_unforeseen(found: dict[str, float]) -> dict[str, float]:
    """The metrics where the rates of each step follow from those of the last: what the fitted states do not foretell is then no
    input and no noise, but dimensions that the fit has not."""
    found = dict(found)
    missing = found.pop(f"lrrnn/cause_{INPUT}", 0.0) or found.pop("lrrnn/cause_process_noise", 0.0)
    return found | {f"lrrnn/cause_{RANK}": missing} if missing else found


def is_clear(found: Innovations) -> bool:
    """Whether states move by themselves, beyond their errors and any doubt."""
    least = max(LEAST_SD**2, LEAST_RATIO * found.error, LEAST_SHARE * found.noise)
    return found.variance > least


def check_model(recording: Recording, fit: FittedDynamics) -> ModelChecks:
    """Check rates against the model that was fitted to them.

    Args:
        recording: rates; fit: its latents and loadings, with its fold.

    Raises:
        UserError: too few neurons or samples.
    """
    readout = check_readout(recording, fit.fold, fit.latents.rank, fit.loadings.has_bias)
    lengths = recording.lengths[fit.fold.train]
    trials = fit.fold.train[lengths.cumsum(0) <= max(_MOST_SAMPLES, int(lengths[:2].sum()))]
    latents, covariance = fit.latents.trials(trials), None
    if fit.readings is not None:
        latents, covariance = replace(latents, z=fit.readings[0][trials]), fit.readings[1][trials]
    seen = latents, fit.loadings, fit.activation, covariance
    own, added = innovations(*seen), None
    if RANK in readout.adopted and DRIFT not in readout.adopted:
        z, errors, loadings = states_of(recording, readout.readout, readout.fitted, trials)
        added = innovations(z, loadings, readout.readout.activation, errors)
    checks = ModelChecks(readout, {}, own, added)
    if not readout.adopted and not checks.slow_residuals:
        checks = replace(checks, steps=time_step_evidence(*seen))
    return checks
