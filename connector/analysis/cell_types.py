"""Are there cell types? Mixture likelihoods with the null beside them, a calibrated test, and the clusters themselves.

A curved conditional mean nu alone makes "clusters" in (loadings, n), so an elbow of the mixture likelihood of
(loadings, n) is no evidence for cell types; and given nu, n holds nothing about them that the loadings lack. Hence the
two tools: the curve always with its re-simulated null, and a test on the loadings alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from connector.connectivity.student_t import fit_student_t, log_density, mahalanobis
from connector.errors import UserError
from connector.types import Loadings

if TYPE_CHECKING:  # scikit-learn's import takes a second: of those alone who fit mixtures
    from sklearn.mixture import GaussianMixture

COMPONENTS = tuple(range(1, 10))


def features(loadings: Loadings, n: Tensor | None = None) -> Tensor:
    """The columns (m, b, d) and, where given, n, side by side: (K, R + U + 1 [+ R]), float64."""
    stacked = loadings.stack().detach().double().cpu()
    return stacked if n is None else torch.cat([stacked, n.detach().double().cpu()], dim=1)


# --- the mixture likelihood of (loadings, n) ------------------------------------------------------------------------


class MixtureLikelihood(NamedTuple):
    """Cross-validated log-likelihood of Gaussian mixtures.

    Attributes:
        components: (C,) numbers of components k.
        mean, std: (C,) over folds, nats per neuron.
    """

    components: Tensor
    mean: Tensor
    std: Tensor

    @property
    def elbow(self) -> int:
        """k at which the curve bends most: farthest above the straight line to its maximum over the whole range."""
        rise = self.mean.max() - self.mean[0]
        if rise <= 0:
            return int(self.components[0])
        k = self.components.double()
        height = (self.mean - self.mean[0]) / rise - (k - k[0]) / (k[-1] - k[0])
        return int(self.components[int(height.argmax())])


def mixture_likelihood(
    x: Tensor, components: Sequence[int] = COMPONENTS, n_folds: int = 5, n_init: int = 1, seed: int = 0
) -> MixtureLikelihood:
    """Cross-validated log-likelihood of Gaussian mixtures with full covariances.

    Args:
        x: (K, D), for instance features(loadings, n).
        components: numbers of components tried.
        n_folds: of neurons.
        n_init: k-means starts of each fit.
        seed: of folds and starts.

    Raises:
        UserError: fewer neurons than two per component and fold.
    """
    data = x.detach().double().cpu().numpy()
    if len(data) < 2 * max(components) * n_folds / (n_folds - 1):
        raise UserError(
            f"enough neurons for {max(components)} components", f"{len(data)} neurons", "ask for fewer components"
        )
    fold = np.random.default_rng(seed).permutation(len(data)) % n_folds
    scores = np.empty((len(components), n_folds))
    for row, k in enumerate(components):
        for f in range(n_folds):
            model = _fit_mixture(data[fold != f], k, n_init, seed)
            scores[row, f] = model.score(data[fold == f])
    return MixtureLikelihood(
        torch.tensor(components), torch.from_numpy(scores.mean(1)), torch.from_numpy(scores.std(1))
    )


def _fit_mixture(data: np.ndarray, k: int, n_init: int, seed: int) -> GaussianMixture:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    scale = data.var(0).mean()
    model = GaussianMixture(k, n_init=n_init, reg_covar=1e-4 * scale, max_iter=200, random_state=seed)
    with warnings.catch_warnings():
        # A fit stopped at the last iteration is only a slightly worse member of the curve.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(data)


def null_mixture_likelihood(
    loadings: Loadings,
    n: Tensor,
    conditional_mean: Callable[[Loadings], Tensor] | None = None,
    n_draws: int = 5,
    components: Sequence[int] = COMPONENTS,
    n_folds: int = 5,
    seed: int = 0,
) -> Tensor:
    """The same curve for populations that have no cell types by construction.

    Args:
        loadings, n: of the neurons whose curve is to be judged.
        conditional_mean: nu. Given it, null loadings are drawn from one Gaussian with the moments of the loadings, and
            n = nu(null loading) + Gaussian noise with the covariance of n - nu(loading): the conditional mean, and
            so what it bends, stays. Without it, (loadings, n) are drawn jointly from one Gaussian.
        n_draws: populations drawn.

    Returns:
        (n_draws, len(components)) mean log-likelihood per neuron, nats.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = {"rank": loadings.rank, "n_inputs": loadings.n_inputs, "has_bias": loadings.has_bias}
    curves = []
    for draw in range(n_draws):
        if conditional_mean is None:
            null = _gaussian_like(features(loadings, n), generator)
        else:
            with torch.no_grad():
                residual = n.detach().double().cpu() - conditional_mean(loadings).detach().double().cpu()
                sampled = _gaussian_like(features(loadings), generator)
                cast = Loadings.unstack(sampled.to(loadings.m), **sizes)
                spread = _gaussian_like(residual, generator)
                # No spread at sigma = 0; a Gaussian with zero covariance is just its mean, which is then zero too.
                null = torch.cat([sampled, conditional_mean(cast).detach().double().cpu() + spread], dim=1)
        curves.append(mixture_likelihood(null, components, n_folds, seed=seed + draw).mean)
    return torch.stack(curves)


def _gaussian_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """As many draws from a Gaussian with the mean and the covariance of x (K, D)."""
    values, vectors = torch.linalg.eigh(torch.cov(x.T).reshape(x.shape[1], x.shape[1]))
    root = vectors * values.clamp_min(0).sqrt()
    return x.mean(0) + torch.randn(x.shape, generator=generator, dtype=x.dtype) @ root.T


# --- the test for cell types ----------------------------------------------------------------------------------------


class CellTypeTest(NamedTuple):
    """Result of :func:`cell_type_test`.

    Attributes:
        p_value: share of populations without cell types that looks at least as clustered.
        gain: penalised log-likelihood gain of the best mixture over one component, nats per neuron.
        components: its number of components.
        null_gains: (n_bootstrap,) the same of simulated populations without cell types.
        tail_index: degrees of freedom of the fitted single component; infinite for Gaussian tails.
    """

    p_value: float
    gain: float
    components: int
    null_gains: Tensor
    tail_index: float

    def __str__(self) -> str:
        verdict = "evidence for cell types" if self.p_value <= 0.05 else "no evidence for cell types"
        return f"{verdict} in the loadings (p = {self.p_value:.2g})"


def cell_type_test(
    loadings: Loadings | Tensor,
    *,
    null: str = "student",
    components: Sequence[int] = (2, 3, 4, 5),
    n_bootstrap: int = 99,
    max_neurons: int = 1000,
    seed: int = 0,
) -> CellTypeTest:
    """Test whether the loadings form more than one cell type, by a parametric bootstrap against a single component.

    Statistic: the largest gain in log-likelihood of a Gaussian mixture with k components over k = 1, less half of
    log K for each further parameter. Its distribution without cell types is simulated: populations of as many neurons
    are drawn from the single component fitted to the loadings and pass through the same computation. Affine
    invariant, so the gauge of the latents does not matter.

    Args:
        loadings: Loadings or (K, P).
        null: the single component: "gaussian", or "student", a multivariate Student t whose degrees of freedom are
            fitted (Gaussian where the tails are). Against a Gaussian, one heavy-tailed population counts as two
            concentric ones.
        components: numbers of components tried.
        n_bootstrap: simulated populations; the smallest p-value is 1 / (n_bootstrap + 1).
        max_neurons: larger populations are thinned to this number.
        seed: of thinning, populations and starts.
    """
    if null not in ("student", "gaussian"):
        raise UserError("null 'student' or 'gaussian'", repr(null))
    x = features(loadings) if isinstance(loadings, Loadings) else loadings.detach().double().cpu()
    generator = torch.Generator().manual_seed(seed)
    if len(x) > max_neurons:
        x = x[torch.randperm(len(x), generator=generator)[:max_neurons]]
    x = _whiten(x[None])[0]
    if len(x) < 10 * x.shape[1] or x.shape[1] == 0:
        raise UserError("at least ten neurons for each column of the loadings, and loadings that vary", f"{len(x)}")
    dof, centre, root = _fit_student(x) if null == "student" else (float("inf"), x.mean(0), torch.eye(x.shape[1]))
    normal = torch.randn((n_bootstrap, *x.shape), generator=generator, dtype=x.dtype)
    if dof < float("inf"):
        rng = np.random.default_rng(seed)
        chi_squared = torch.from_numpy(rng.chisquare(dof, size=(n_bootstrap, len(x), 1)))
        normal = normal / (chi_squared / dof).sqrt()
    populations = torch.cat([x[None], centre + normal @ root.to(x).T])
    gains, best = _mixture_gains(_whiten(populations), tuple(components), generator)
    p_value = (1 + int((gains[1:] >= gains[0]).sum())) / (1 + n_bootstrap)
    return CellTypeTest(p_value, float(gains[0]), int(best[0]), gains[1:], dof)


def _whiten(x: Tensor) -> Tensor:
    """Each population (B, K, P) with mean zero and covariance one; directions without variance (in the first) go."""
    x = x - x.mean(1, keepdim=True)
    covariance = x.transpose(1, 2) @ x / x.shape[1]
    values, vectors = torch.linalg.eigh(covariance)
    keep = values[0] > 1e-10 * values[0].max()
    return (x @ vectors)[..., keep] / values[:, None, keep].sqrt()


def _fit_student(x: Tensor, grid_size: int = 25) -> tuple[float, Tensor, Tensor]:
    """Maximum likelihood of a multivariate Student t: degrees of freedom, of a grid, centre, root of the scale matrix."""
    dim, best = x.shape[1], (-float("inf"),)
    for dof in [*torch.logspace(0, 2, grid_size, dtype=x.dtype), x.new_tensor(float("inf"))]:
        centre, scale, _ = fit_student_t(x, float(dof), sweeps=30)
        fit = log_density(mahalanobis(x, centre, scale), dim, dof).mean() - torch.logdet(scale) / 2
        if float(fit) > best[0]:
            best = (float(fit), float(dof), centre, torch.linalg.cholesky(scale))
    return best[1:]


def _mixture_gains(x: Tensor, components: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Largest penalised gain of k components over one, nats per neuron, and its k, for each population (B, K, P)."""
    count, dim = x.shape[1:]
    products = _quadratic_features(x.float())
    one = _log_likelihood(products, *_m_step(torch.ones_like(products[:, :1]), products, dim))[1]
    per_component = 1 + dim + dim * (dim + 1) / 2
    gains = []
    for k in components:
        penalty = (k - 1) * per_component * np.log(count) / (2 * count)
        gains.append((_fit_mixtures(x, products, k, generator) - one).double() - penalty)
    gain, best = torch.stack(gains).max(dim=0)
    return gain, torch.tensor(components)[best]


def _fit_mixtures(
    x: Tensor, products: Tensor, k: int, generator: torch.Generator, trial: int = 8, steps: int = 40
) -> Tensor:
    """Log-likelihood per neuron of k-component mixtures fitted to all populations at once, (B,).

    The best of several starts; of more in small populations, where there are more local maxima and each costs less.
    Single precision: it moves a gain by 1e-6 nats, hundreds of times less than gains differ between populations.
    """
    batch, count, dim = x.shape
    best, chosen = None, None
    for _ in range(max(4, min(20, 2000 // count))):
        resp = torch.softmax(_squares_of_spread_points(x, k, generator).div_(-2), dim=1).to(products)
        for _ in range(trial):
            resp, fit = _log_likelihood(products, *_m_step(resp, products, dim))
        better = torch.ones(batch, dtype=torch.bool) if best is None else fit > best
        best = fit if best is None else torch.where(better, fit, best)
        chosen = resp if chosen is None else torch.where(better[:, None, None], resp, chosen)
    for _ in range(steps):
        chosen, best = _log_likelihood(products, *_m_step(chosen, products, dim))
    return best


def _squares_of_spread_points(x: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Squared distances (B, k, K) from k neurons of each population, drawn far apart (each with probability ~ squared
    distance to those drawn)."""
    rows, columns = torch.arange(len(x)), x.transpose(1, 2).contiguous()  # sums over the first of few are the fastest

    def squares(chosen: Tensor) -> Tensor:
        return (columns - x[rows, chosen][:, :, None]).square_().sum(1)

    found = [squares(torch.randint(x.shape[1], (len(x),), generator=generator))]
    nearest = found[0]
    for _ in range(k - 1):
        found.append(squares(torch.multinomial(nearest + 1e-12, 1, generator=generator)[:, 0]))
        nearest = torch.minimum(nearest, found[-1])
    return torch.stack(found, dim=1)


def _quadratic_features(x: Tensor) -> Tensor:
    """(1, x, x x^T) of each neuron, (B, 1 + P + P^2, K): log-densities and moments are linear in them."""
    x = x.transpose(1, 2)
    outer = (x[:, :, None] * x[:, None]).flatten(1, 2)
    return torch.cat([torch.ones_like(x[:, :1]), x, outer], dim=1)


def _m_step(resp: Tensor, products: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-weights (B, k), means (B, k, P) and covariances (B, k, P, P) from responsibilities (B, k, K)."""
    sums = resp @ products.transpose(1, 2)
    total = sums[..., :1].clamp_min(1e-8)
    mean = sums[..., 1 : 1 + dim] / total
    second = (sums[..., 1 + dim :] / total).unflatten(-1, (dim, dim))
    covariance = second - mean[..., :, None] * mean[..., None, :]
    # A floor keeps components from collapsing onto single neurons; populations are whitened, so it is relative.
    covariance = covariance + 1e-3 * torch.eye(dim, dtype=resp.dtype)
    return torch.log(total[..., 0] / resp.shape[2]), mean, covariance


def _log_likelihood(products: Tensor, log_weight: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Responsibilities (B, k, K) and the mean log-likelihood per neuron (B,)."""
    dim = mean.shape[-1]
    precision = torch.linalg.inv(covariance)
    linear = (precision @ mean[..., None])[..., 0]
    constant = log_weight - ((linear * mean).sum(-1) + torch.logdet(covariance) + dim * np.log(2 * np.pi)) / 2
    coefficients = torch.cat([constant[..., None], linear, -precision.flatten(2) / 2], dim=2)
    log_joint = coefficients @ products
    top = log_joint.amax(1, keepdim=True)
    # Numbers too small for normal precision are slow to compute.
    resp = log_joint.sub_(top).clamp_min_(-80).exp_()
    total = resp.sum(1, keepdim=True)
    return resp.div_(total), (total.log() + top)[:, 0].mean(1)


# --- the clusters ---------------------------------------------------------------------------------------------------


def assign_cell_types(
    x: Tensor, k: int, method: str = "mixture", seed: int = 0, reference: Tensor | None = None
) -> Tensor:
    """Labels (K,) 0..k-1 of the neurons' clusters.

    Args:
        x: (K, D), for instance features(loadings) or features(loadings, n).
        k: number of clusters.
        method: "mixture" (Gaussian mixture) or "kmeans".
        seed: of the starts.
        reference: (k, D) cluster centres to match, so that labels mean the same in two networks; without it clusters
            are numbered from the largest to the smallest, ties by the first coordinate.
    """
    from sklearn.cluster import KMeans
    from sklearn.mixture import GaussianMixture

    data = x.detach().double().cpu().numpy()
    if method == "mixture":
        scale = data.var(0).mean()
        labels = GaussianMixture(k, n_init=5, reg_covar=1e-4 * scale, random_state=seed).fit_predict(data)
    elif method == "kmeans":
        labels = KMeans(k, n_init=10, random_state=seed).fit_predict(data)
    else:
        raise UserError("method 'mixture' or 'kmeans'", repr(method))
    labels = torch.from_numpy(labels).long()
    centres = cluster_centres(x, labels, k)
    if reference is None:
        size = torch.bincount(labels, minlength=k)
        order = sorted(range(k), key=lambda c: (-int(size[c]), float(centres[c, 0])))
        rename = torch.empty(k, dtype=torch.long)
        rename[torch.tensor(order)] = torch.arange(k)
    else:
        _, column = linear_sum_assignment(torch.cdist(centres, reference.double().cpu()).numpy())
        rename = torch.from_numpy(column)
    return rename[labels]


class CellTypes:
    """Cell types as the components of a Gaussian mixture fitted to one population, to label others by.

    Neurons of networks that are sampled from one distribution are labelled alike, and no mixture is fitted to a sample
    as large as one pleases. Components are numbered from the largest to the smallest.

    Args:
        x: (K, D), for instance features(loadings) of the recorded neurons.
        k: number of components.
        seed: of the starts.

    Attributes:
        weights: (k,) shares of the components.
    """

    def __init__(self, x: Tensor, k: int, seed: int = 0):
        from sklearn.mixture import GaussianMixture

        x = x.detach().double().cpu()
        if k < 1 or len(x) < 2 * k:
            raise UserError(f"at least two neurons for each of {k} cell types", f"{len(x)} neurons")
        self._centre, self._size = x.mean(0), x.std(0).clamp_min(1e-12)
        data = ((x - self._centre) / self._size).numpy()
        self._model = GaussianMixture(k, n_init=10, reg_covar=1e-3, random_state=seed).fit(data)
        order = np.lexsort((self._model.means_[:, 0], -self._model.weights_))
        self._rank = torch.empty(k, dtype=torch.long)
        self._rank[torch.from_numpy(order.copy())] = torch.arange(k)
        self.weights = torch.from_numpy(self._model.weights_[order])

    @property
    def k(self) -> int:
        return len(self.weights)

    def labels(self, x: Tensor) -> Tensor:
        """The most probable type of each neuron, (K,) 0..k-1."""
        data = (x.detach().double().cpu() - self._centre) / self._size
        return self._rank[torch.from_numpy(self._model.predict(data.numpy())).long()]


def cluster_centres(x: Tensor, labels: Tensor, k: int | None = None) -> Tensor:
    """Mean of each cluster, (k, D) float64; zeros for an empty one."""
    x = x.detach().double().cpu()
    k = int(labels.max()) + 1 if k is None else k
    one_hot = torch.nn.functional.one_hot(labels.cpu(), k).double()
    return one_hot.T @ x / one_hot.sum(0).clamp_min(1)[:, None]
