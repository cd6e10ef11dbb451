"""The conditional mean of the output weights, nu(m, b, d) = E[n | m, b, d], as it was fitted: evaluated and saved."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from torch import Tensor, nn

from connector.connectivity.nu.kernels import kernel, kernel_diagonal, linear_features
from connector.dynamics import activation as get_activation
from connector.dynamics import potentials
from connector.errors import UserError
from connector.types import Loadings

_CHUNK = 4_000_000  # entries of a matrix built at a time: 32 MB


class ConditionalMean(nn.Module):
    """nu at any loading. Made by :func:`fit_conditional_mean`; rebuilt from :meth:`state` by :func:`from_state`.

    Attributes:
        rank, n_inputs, has_bias: the columns of a stacked loading (m, b, d).
        summary: what was chosen and found, plain values: estimator, lambda, noise, determined modes, evidence ...
    """

    estimator = ""
    kinds: ClassVar[dict[str, type[ConditionalMean]]] = {}  # by the name of the estimator, for from_state

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if cls.estimator:
            ConditionalMean.kinds[cls.estimator] = cls

    def __init__(self, values: dict, tensors: dict[str, Tensor]):
        super().__init__()
        self.values = values
        self.rank, self.n_inputs, self.has_bias = values["rank"], values["n_inputs"], values["has_bias"]
        self.summary: dict = values["summary"]
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    @property
    def determined_modes(self) -> float:
        """sum_j g_j / (g_j + lambda) over the eigenvalues g_j of K/T X X^T: how many numbers the data fix."""
        return self.summary["determined_modes"]

    def forward(self, stacked: Tensor) -> Tensor:
        """nu (K, R) at stacked loadings (K, R + U + bias), in their dtype."""
        self._check(stacked)
        rows = max(1, _CHUNK // self._width())
        parts = [self._mean(part.double()) for part in stacked.split(rows)]
        return torch.cat(parts).to(stacked.dtype) if parts else stacked.new_zeros(0, self.rank)

    def quick(self, stacked: Tensor, tolerance: float = 1e-4) -> Tensor:
        """nu as :meth:`forward` has it, in single precision, which takes a third of the time.

        Some rows are computed in both precisions: where they differ by more than ``tolerance`` of nu's root mean
        square, all are computed in double precision.
        """
        self._check(stacked)
        single = copy.deepcopy(self).float()
        some = stacked[:: max(1, len(stacked) // 64)]
        exact = self(some).double()
        error = (single._mean(some.float()).double() - exact).square().mean()
        if not error <= tolerance**2 * exact.square().mean():
            return self(stacked)
        rows = max(1, _CHUNK // self._width())
        return torch.cat([single._mean(part.float()) for part in stacked.split(rows)]).to(stacked.dtype)

    def variance(self, stacked: Tensor) -> Tensor:
        """Posterior variance of nu (K, R) at stacked loadings."""
        self._check(stacked)
        rows = max(1, _CHUNK // self._width())
        parts = [self._variance(part.double()) for part in stacked.split(rows)]
        return torch.cat(parts).to(stacked.dtype) if parts else stacked.new_zeros(0, self.rank)

    def state(self) -> dict:
        """Plain values and tensors from which :func:`from_state` rebuilds the estimate."""
        return {"estimator": self.estimator, "values": self.values, "tensors": dict(self.named_buffers())}

    def _mean(self, stacked: Tensor) -> Tensor:
        raise NotImplementedError

    def _variance(self, stacked: Tensor) -> Tensor:
        raise NotImplementedError

    def _width(self) -> int:
        raise NotImplementedError

    def _check(self, stacked: Tensor) -> None:
        columns = self.rank + self.n_inputs + int(self.has_bias)
        if stacked.ndim != 2 or stacked.shape[1] != columns:
            raise UserError(f"stacked loadings (m, b, d) of {columns} columns", str(tuple(stacked.shape)))


class RidgeMean(ConditionalMean):
    """nu(l) = (1/T) sum_t phi(m.z_t + b.u_t + d) c_t."""

    estimator = "ridge"

    def _mean(self, stacked: Tensor) -> Tensor:
        loadings = Loadings.unstack(stacked, self.rank, self.n_inputs, self.has_bias)
        u = self.u if self.n_inputs else None
        phi = get_activation(self.values["activation"])
        return phi(potentials(loadings, self.z, u)).T @ self.c / len(self.z)

    def _variance(self, stacked: Tensor) -> Tensor:
        raise UserError(
            "an estimator with a posterior (estimator gaussian_process)",
            "the published ridge, which makes no statement about its error",
            "fit with estimator gaussian_process",
        )

    def _width(self) -> int:
        return len(self.z)


class GaussianProcessMean(ConditionalMean):
    """Mixture, weighted by evidence, of Gaussian process posteriors that differ in kernel family and width."""

    estimator = "gaussian_process"

    @property
    def spread(self) -> Tensor:
        """(R, R) covariance of n around nu in the fitted population, as far as y shows it."""
        return (self.weights * self.amplitudes[:, 2]).sum() * self.gauge @ self.gauge

    def _of_components(self, stacked: Tensor, linear: Tensor, curved: Tensor):
        """Of each component i: its number, the features (K, P), and features linear_i + k(., centres) curved_i."""
        x, odd = (stacked - self.location) @ self.whitening, self.values["odd"]
        features = linear_features(x, odd)
        for i, (family, width) in enumerate(self.values["components"]):
            value = features @ linear[i]
            if family != "none":
                value = value + kernel(x, self.centres, family, width, odd) @ curved[i]
            yield i, x, features, value

    def _mean(self, stacked: Tensor) -> Tensor:
        found = self._of_components(stacked, self.linear_coefficients, self.coefficients)
        return sum(self.weights[i] * mean for i, _, _, mean in found) @ self.gauge

    def _variance(self, stacked: Tensor) -> Tensor:
        linear = torch.cat([self.linear_coefficients, self.linear_factors], dim=2)
        curved = torch.cat([self.coefficients, self.factors], dim=2)
        rank, parts = len(self.gauge), []
        for i, x, features, value in self._of_components(stacked, linear, curved):
            family, width = self.values["components"][i]
            prior = self.amplitudes[i, 0] * features.square().sum(1)
            if family != "none":
                prior = prior + self.amplitudes[i, 1] * kernel_diagonal(x, family, width, self.values["odd"])
            left = (prior - value[:, rank:].square().sum(1)).clamp_min(0)
            parts.append((self.weights[i], value[:, :rank] @ self.gauge, left))
        centre = sum(w * mean for w, mean, _ in parts)
        scale = self.gauge.square().sum(0)
        return sum(w * (v[:, None] * scale + (mean - centre) ** 2) for w, mean, v in parts)

    def _width(self) -> int:
        return len(self.centres) * 4  # kernels need a few temporaries of this size


class TrajectoryMean(ConditionalMean):
    """nu at any loading with posterior intervals. Made by :func:`fit_trajectories`.

    Attributes:
        estimand: "folded" (odd phi, no bias, no input: see the module's text) or "mean".
        predicted_error: expected normalised squared error of nu over the recorded neurons' loadings.
        summary: plain values, among them noise_sd (of the samples), residual_autocorrelation, kernel, determined_modes
            and ``warnings``, sentences about signs that the model does not fit.
    """

    estimator = "trajectories"

    @property
    def estimand(self) -> str:
        return self.values["estimand"]

    @property
    def predicted_error(self) -> float:
        return self.summary["predicted_error"]

    @property
    def spread(self) -> Tensor:
        """(R, R) covariance of n around nu in the network, as far as its dynamics show it."""
        return (self.weights * self.amplitudes[:, 2]).sum() * self.gauge @ self.gauge

    def mean(self, rows: Tensor) -> Tensor:
        """nu (K, R) at stacked loadings (K, R + U + bias), in their dtype."""
        return self(rows)

    def interval(self, rows: Tensor, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Central posterior intervals of nu.

        Args:
            rows: (K, R + U + bias) stacked loadings.
            level: probability, in (0, 1).

        Returns:
            low, high: (K, R) each, in the dtype of ``rows``.

        Raises:
            UserError: a level outside (0, 1), or rows of another width.
        """
        if not 0 < level < 1:
            raise UserError("a level between 0 and 1", repr(level))
        self._check(rows)
        low, high = [rows.new_zeros(0, self.rank)], [rows.new_zeros(0, self.rank)]
        for part in rows.split(max(1, _CHUNK // self._width())):
            means, variances = self._components(part.double())
            middle = (self.weights[:, None, None] * means).sum(0)
            tail = (1 - level) / 2
            for side, probability in ((low, tail), (high, 1 - tail)):
                quantile = _mixture_quantile(means, variances.sqrt(), self.weights, probability)
                side.append((middle + self.values["width_factor"] * (quantile - middle)).to(rows.dtype))
        return torch.cat(low), torch.cat(high)

    def _components(self, stacked: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances (components, K, R) of nu."""
        x = (stacked - self.location) @ self.whitening
        odd = self.values["odd"]
        features = linear_features(x, odd)
        straight, straight_prior = features @ self.linear_weights, features.square().sum(1)
        scale = self.gauge.square().sum(0)
        means, variances = [], []
        for i, (family, width) in enumerate(self.values["kernels"]):
            if family != "none":
                curved = kernel(x, self.centres, family, width, odd) @ self.projections[i]
                curved_prior = kernel_diagonal(x, family, width, odd)
            for j in (self.kernel_index == i).nonzero()[:, 0].tolist():
                cross, prior = self.amplitudes[j, 0] * straight, self.amplitudes[j, 0] * straight_prior
                if family != "none":
                    cross = cross + self.amplitudes[j, 1] * curved
                    prior = prior + self.amplitudes[j, 1] * curved_prior
                means.append((j, cross @ self.coefficients[j] @ self.gauge))
                explained = torch.stack([(cross @ root.T).square().sum(1) for root in self.roots[j]], dim=1)
                variances.append((j, (prior[:, None] * scale - explained).clamp_min(0)))
        means.sort(key=lambda item: item[0])
        variances.sort(key=lambda item: item[0])
        return torch.stack([m for _, m in means]), torch.stack([v for _, v in variances])

    def _mean(self, stacked: Tensor) -> Tensor:
        """The weighted mean of :meth:`_components`, summed over the components before the loadings come in."""
        x, odd = (stacked - self.location) @ self.whitening, self.values["odd"]
        shares = self.weights[:, None] * self.amplitudes  # (components, 3)
        mean = linear_features(x, odd) @ (self.linear_weights @ torch.tensordot(shares[:, 0], self.coefficients, 1))
        for i, (family, width) in enumerate(self.values["kernels"]):
            if family != "none":
                here = self.kernel_index == i
                curved = self.projections[i] @ torch.tensordot(shares[here, 1], self.coefficients[here], 1)
                mean = mean + kernel(x, self.centres, family, width, odd) @ curved
        return mean @ self.gauge

    def _variance(self, stacked: Tensor) -> Tensor:
        means, variances = self._components(stacked)
        weight = self.weights[:, None, None]
        centre = (weight * means).sum(0)
        return self.values["width_factor"] ** 2 * (weight * (variances + (means - centre) ** 2)).sum(0)

    def _width(self) -> int:
        return max(4 * len(self.centres), 8 * len(self.weights) * self.rank)


def _mixture_quantile(means: Tensor, sds: Tensor, weights: Tensor, probability: float) -> Tensor:
    """Quantile of normal mixtures by bisection: means, sds (C, ...), weights (C,)."""
    low, high = (means - 8 * sds).amin(0), (means + 8 * sds).amax(0)
    sds = sds.clamp_min(1e-300)
    weights = weights.view(-1, *[1] * (means.ndim - 1))
    for _ in range(36):
        middle = 0.5 * (low + high)
        below = (weights * torch.special.ndtr((middle - means) / sds)).sum(0) < probability
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)


def from_state(state: dict) -> ConditionalMean:
    """Rebuild what :meth:`ConditionalMean.state` described; the module that defines its class must be imported."""
    return ConditionalMean.kinds[state["estimator"]](state["values"], state["tensors"])
