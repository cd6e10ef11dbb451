"""The conditional mean of the output weights, nu(m, b, d) = E[n | m, b, d], as it was fitted: evaluated and saved."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from connector.connectivity.nu.kernels import kernel, kernel_diagonal, linear_features
from connector.connectivity.nu.population import Population, clouds
from connector.dynamics import activation as get_activation
from connector.dynamics import potentials
from connector.errors import UserError, require
from connector.numerics import pieces
from connector.types import Loadings


class ConditionalMean(nn.Module):
    """nu at any loading. Made by :func:`fit_conditional_mean`; rebuilt from :meth:`state` by :func:`from_state`.

    Attributes:
        rank, n_inputs, has_bias: the columns of a stacked loading (m, b, d).
        summary: what was chosen and found, plain values: estimator, lambda, noise, determined modes, evidence ...
    """

    estimator = ""

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
        return self._in_pieces(self._mean, stacked)

    def quick(self, stacked: Tensor, tolerance: float = 1e-4) -> Tensor:
        """nu as :meth:`forward` has it, in single precision, which takes a third of the time.

        Some rows are computed in both precisions: where they differ by more than ``tolerance`` of nu's root mean
        square, all are computed in double precision.
        """
        single = copy.deepcopy(self).float()
        some = stacked[:: max(1, len(stacked) // 64)]
        exact = self(some).double()
        error = (single._mean(some.float()).double() - exact).square().mean()
        if not error <= tolerance**2 * exact.square().mean():
            return self(stacked)
        return self._in_pieces(single._mean, stacked, torch.float32)

    def variance(self, stacked: Tensor) -> Tensor:
        """Posterior variance of nu (K, R) at stacked loadings."""
        return self._in_pieces(self._variance, stacked)

    def _in_pieces(
        self,
        function: Callable[[Tensor], Tensor],
        stacked: Tensor,
        dtype: torch.dtype = torch.float64,
        group: int = 1,
    ) -> Tensor:
        """``function`` of some rows at a time, a multiple of ``group`` of them."""
        columns = self.rank + self.n_inputs + int(self.has_bias)
        fits = stacked.ndim == 2 and stacked.shape[1] == columns
        require(fits, f"stacked loadings (m, b, d) of {columns} columns", tuple(stacked.shape))
        many = pieces(max(1, len(stacked) // group), group * self._width())
        found = [function(stacked[at.start * group : at.stop * group].to(dtype)) for at in many]
        return torch.cat(found).to(stacked.dtype)

    def state(self) -> dict:
        """Plain values and tensors from which :func:`from_state` rebuilds the estimate."""
        return {"estimator": self.estimator, "values": self.values, "tensors": dict(self.named_buffers())}

    def _mean(self, stacked: Tensor) -> Tensor:
        raise NotImplementedError

    def _variance(self, stacked: Tensor) -> Tensor:
        raise NotImplementedError

    def _width(self) -> int:
        raise NotImplementedError


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


class MixtureMean(ConditionalMean):
    """Mixture of Gaussian process posteriors, n = n' gauge with n' alike in all dimensions."""

    @property
    def spread(self) -> Tensor:
        """(R, R) covariance of n around nu in the fitted population, as far as the data show it."""
        return (self.weights * self.amplitudes[:, 2]).sum() * self.gauge @ self.gauge

    def _whitened(self, stacked: Tensor) -> tuple[Tensor, Tensor]:
        """Whitened loadings (K, P), and the features of the linear part."""
        x = (stacked - self.location) @ self.whitening
        return x, linear_features(x, self.values["odd"])


class GaussianProcessMean(MixtureMean):
    """Posteriors that differ in kernel family and width, weighted by their evidence."""

    estimator = "gaussian_process"

    def _of_components(self, stacked: Tensor, linear: Tensor, curved: Tensor):
        """Of each component i: its number, the features (K, P), and features linear_i + k(., centres) curved_i."""
        (x, features), odd = self._whitened(stacked), self.values["odd"]
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
            prior = prior + self.amplitudes[i, 1] * kernel_diagonal(x, family, width, self.values["odd"])
            left = (prior - value[:, rank:].square().sum(1)).clamp_min(0)
            parts.append((self.weights[i], value[:, :rank] @ self.gauge, left))
        centre = sum(w * mean for w, mean, _ in parts)
        scale = self.gauge.square().sum(0)
        return sum(w * (v[:, None] * scale + (mean - centre) ** 2) for w, mean, v in parts)

    def _width(self) -> int:
        return len(self.centres) * 4  # kernels need a few temporaries of this size


class TrajectoryMean(MixtureMean):
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

    def interval(self, rows: Tensor, level: float = 0.95, errors: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Central posterior intervals of nu.

        Args:
            rows: (K, R + U + bias) stacked loadings.
            level: probability, in (0, 1).
            errors: (K, P, P) covariance of the error of each row of P entries, as recorded neurons' loadings have it. The
                intervals are then those of nu at the true loading, over its posterior given the row.

        Returns:
            low, high: (K, R) each, in the dtype of ``rows``.

        Raises:
            UserError: a level outside (0, 1), rows or errors of another width.
        """
        require(0 < level < 1, "a level between 0 and 1", level)
        tail = (1 - level) / 2
        both = self._at(rows, errors, lambda *parts: torch.cat(self._mixed(*parts, tail, 1 - tail), 1))
        return both[:, : self.rank], both[:, self.rank :]

    def mean(self, rows: Tensor, errors: Tensor | None = None) -> Tensor:
        """nu (K, R) at stacked loadings (K, R + U + bias), in their dtype; ``errors`` as for :meth:`interval`."""
        if errors is None:
            return self(rows)
        return self._at(rows, errors, lambda means, _: (self.weights[:, None, None] * means).sum(0))

    def variance(self, stacked: Tensor, errors: Tensor | None = None) -> Tensor:
        """Posterior variance of nu (K, R) at stacked loadings; ``errors`` as for :meth:`interval`."""
        return self._at(stacked, errors, self._mixed_variance)

    def _at(self, rows: Tensor, errors: Tensor | None, mixed: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """``mixed`` of the components' means and variances (components, K, R) at rows (K, P), or over the clouds of points
        that stand for true loadings behind rows with errors."""
        if errors is None:
            return self._in_pieces(lambda part: mixed(*self._components(part)), rows)
        expected = (*rows.shape, rows.shape[-1])
        require(tuple(errors.shape) == expected, f"errors of shape {expected}", tuple(errors.shape))
        points = clouds(rows.double(), errors.to(rows).double(), self.population)  # (K, 2P, P)
        each = points.shape[1]

        def over_clouds(part: Tensor) -> Tensor:
            means, variances = (x.unflatten(1, (-1, each)) for x in self._components(part))
            found = mixed(means.mean(2), variances.mean(2) + means.var(2, unbiased=False))
            return found.repeat_interleave(each, 0)

        return self._in_pieces(over_clouds, points.flatten(0, 1), group=each)[::each].to(rows.dtype)

    @property
    def population(self) -> Population | None:
        """Of the true loadings behind recorded ones with errors, as far as the fit was given any."""
        parts = [getattr(self, f"population_{name}", None) for name in Population._fields]
        return None if parts[0] is None else Population(*parts)

    def _mixed(self, means: Tensor, variances: Tensor, *probabilities: float) -> list[Tensor]:
        """Quantiles of the mixture, from the components' means and variances (components, K, R)."""
        middle = (self.weights[:, None, None] * means).sum(0)
        found = [_mixture_quantile(means, variances.sqrt(), self.weights, p) for p in probabilities]
        return [middle + self.values["width_factor"] * (quantile - middle) for quantile in found]

    def _components(self, stacked: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances (components, K, R) of nu."""
        (x, features), odd = self._whitened(stacked), self.values["odd"]
        straight, straight_prior = features @ self.linear_weights, features.square().sum(1)
        scale = self.gauge.square().sum(0)
        means, variances = {}, {}
        for i, (family, width) in enumerate(self.values["kernels"]):
            curved, curved_prior = torch.zeros_like(straight), kernel_diagonal(x, family, width, odd)
            if family != "none":
                curved = kernel(x, self.centres, family, width, odd) @ self.projections[i]
            for j in (self.kernel_index == i).nonzero()[:, 0].tolist():
                cross = self.amplitudes[j, 0] * straight + self.amplitudes[j, 1] * curved
                prior = self.amplitudes[j, 0] * straight_prior + self.amplitudes[j, 1] * curved_prior
                means[j] = cross @ self.coefficients[j] @ self.gauge
                explained = torch.stack([(cross @ root.T).square().sum(1) for root in self.roots[j]], dim=1)
                variances[j] = (prior[:, None] * scale - explained).clamp_min(0)
        return tuple(torch.stack([of[j] for j in sorted(of)]) for of in (means, variances))

    def _mean(self, stacked: Tensor) -> Tensor:
        """The weighted mean of :meth:`_components`, summed over the components before the loadings come in."""
        (x, features), odd = self._whitened(stacked), self.values["odd"]
        shares = self.weights[:, None] * self.amplitudes  # (components, 3)
        mean = features @ (self.linear_weights @ torch.tensordot(shares[:, 0], self.coefficients, 1))
        for i, (family, width) in enumerate(self.values["kernels"]):
            if family != "none":
                here = self.kernel_index == i
                curved = self.projections[i] @ torch.tensordot(shares[here, 1], self.coefficients[here], 1)
                mean = mean + kernel(x, self.centres, family, width, odd) @ curved
        return mean @ self.gauge

    def _mixed_variance(self, means: Tensor, variances: Tensor) -> Tensor:
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


_KINDS = {kind.estimator: kind for kind in (RidgeMean, GaussianProcessMean, TrajectoryMean)}


def from_state(state: dict) -> ConditionalMean:
    """Rebuild what :meth:`ConditionalMean.state` described."""
    return _KINDS[state["estimator"]](state["values"], state["tensors"])
