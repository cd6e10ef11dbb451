"""What stands between recorded rates and phi(h): gains and offsets of the neurons, and a slow indicator."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class RateScale:
    """How recorded rates stand to phi: rate = gain phi(h) + offset, for each neuron.

    Attributes:
        kind: what was fitted: "offset", "gain" or "both".
        gain, offset: (K,) float64, in units of the recorded rates.
        weight: (K,) float64, of the neurons' squared errors in units of phi: their precision, over its mean.
        spread: standard deviation of the prior of log gains; 0 where gains are no more than units (relu).
        errors: (K, 2) standard errors of log gain and of offset / gain; 0 where not fitted.
    """

    kind: str
    gain: Tensor
    offset: Tensor
    weight: Tensor
    spread: float
    errors: Tensor

    @property
    def gains(self) -> bool:
        return self.kind in ("gain", "both") and self.spread > 0

    @property
    def offsets(self) -> bool:
        return self.kind in ("offset", "both")

    def own(self, rates: Tensor) -> Tensor:
        """Recorded rates (..., K) in units of phi."""
        return ((rates - self.offset.to(rates)) / self.gain.to(rates)).to(rates)

    def recorded(self, rates: Tensor) -> Tensor:
        """phi(h) (..., K) in units of the recorded rates."""
        return self.gain.to(rates) * rates + self.offset.to(rates)

    def neurons(self, index: Tensor | slice) -> RateScale:
        """Of some of the neurons."""
        cut = {name: getattr(self, name)[index] for name in ("gain", "offset", "weight", "errors")}
        return replace(self, **cut)


@dataclass(frozen=True)
class Shown:
    """What a slow indicator shows of rates: trace[t] = decay trace[t-1] + (1 - decay) rate[t], and noise.

    Attributes:
        decay: k, the factor by which the indicator falls in a sample.
        trace: (trials, time, K) float64, zero past a trial's end; start: (trials, K) what was shown a sample before, without noise.
        noise: (K,) standard deviations.
    """

    decay: float
    trace: Tensor
    start: Tensor
    noise: Tensor

    def part(self, trials: Tensor | slice, neurons: Tensor | slice) -> Shown:
        trace, start = self.trace[trials][..., neurons], self.start[trials][:, neurons]
        return Shown(self.decay, trace, start, self.noise[neurons])
