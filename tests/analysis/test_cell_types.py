"""The test for cell types must stay silent without them and speak with them; the curves must find known clusters."""

import pytest
import torch
from draws import generator

from connector.analysis import cell_types as clusters
from connector.data.attractors import teacher
from connector.errors import UserError
from connector.types import Loadings


def gaussian(k, dim, seed):
    g = generator(seed)
    return torch.randn(k, dim, generator=g, dtype=torch.float64) @ torch.randn(dim, dim, generator=g).double()


@pytest.fixture(scope="module")
def quadstable():
    return teacher("quadstable").sample_with_components(600, generator(3))


def test_student_fit_recovers_degrees_of_freedom_and_is_gaussian_for_gaussian_tails():
    net = teacher("heavy_tailed").sample(4000, generator(1))
    dof, centre, root = clusters._fit_student(net.m)
    assert 2.4 < dof < 3.7
    assert centre.abs().max() < 0.1
    assert torch.allclose(root @ root.T, torch.eye(2, dtype=torch.float64), atol=0.15)
    assert clusters._fit_student(gaussian(4000, 2, 0))[0] > 30


def test_mixture_log_likelihood_is_exact_for_known_parameters():
    x = gaussian(50, 2, 1)[None]
    weight = torch.tensor([[0.3, 0.7]], dtype=torch.float64)
    mean = torch.tensor([[[0.0, 1.0], [2.0, -1.0]]], dtype=torch.float64)
    root = torch.tensor([[[1.0, 0.0], [0.5, 0.8]], [[0.6, 0.0], [-0.2, 1.1]]], dtype=torch.float64)[None]
    covariance = root @ root.transpose(-1, -2)
    resp, fit = clusters._log_likelihood(clusters._quadratic_features(x), weight.log(), mean, covariance)
    parts = [
        torch.distributions.MultivariateNormal(mean[0, c], covariance[0, c]).log_prob(x[0]) + weight[0, c].log()
        for c in range(2)
    ]
    expected = torch.logsumexp(torch.stack(parts), dim=0)
    assert float(fit[0]) == pytest.approx(float(expected.mean()), rel=1e-10)
    assert torch.allclose(resp[0, 0], (parts[0] - expected).exp())


def test_cell_types_of_the_mixture_are_found_and_not_in_the_others(quadstable):
    found = clusters.cell_type_test(quadstable[0].loadings, n_bootstrap=39)
    assert found.p_value == pytest.approx(1 / 40)
    assert found.components == 4
    assert found.gain > found.null_gains.max()
    assert str(found).startswith("evidence")
    heavy = teacher("heavy_tailed").sample(600, generator(2)).loadings
    assert clusters.cell_type_test(heavy, n_bootstrap=39).p_value > 0.05
    # against a Gaussian, the heavy tails themselves count
    assert clusters.cell_type_test(heavy, null="gaussian", n_bootstrap=39).p_value < 0.05


def test_the_test_does_not_depend_on_the_gauge_nor_on_constant_columns(quadstable):
    net = quadstable[0]
    plain = clusters.cell_type_test(net.m, n_bootstrap=19)
    turned = clusters.cell_type_test(
        Loadings(m=net.m @ torch.tensor([[2.0, 1.0], [0.3, -0.5]], dtype=torch.float64), d=torch.ones(600).double()),
        n_bootstrap=19,
    )
    # random starts meet the neurons in other coordinates, so the optimum found is the same up to the fit's accuracy
    assert turned.gain == pytest.approx(plain.gain, abs=5e-3)
    assert turned.components == plain.components
    assert torch.equal(clusters.cell_type_test(net.m, n_bootstrap=19).null_gains, plain.null_gains)


@pytest.mark.slow
def test_gaussian_loadings_seldom_look_clustered():
    few = {"components": (2, 3), "n_bootstrap": 9}
    p = torch.tensor([clusters.cell_type_test(gaussian(100, 2, s), seed=s, **few).p_value for s in range(8)])
    assert int((p <= 0.1).sum()) <= 3  # binomial(8, .1) exceeds 3 with probability .005
    assert float(p.max()) > 0.4  # all of them below with probability .0007


@pytest.mark.slow
def test_gaussian_loadings_give_p_values_spread_over_the_unit_interval():
    p = torch.tensor([clusters.cell_type_test(gaussian(150, 2, s), n_bootstrap=19, seed=s).p_value for s in range(40)])
    # 40 draws of a level of .25: outside 2..20 with probability below .002 on either side
    assert 2 <= int((p <= 0.25).sum()) <= 20
    assert int((p <= 0.05).sum()) <= 7


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gaussian", "heavy_tailed"])
def test_false_positive_rate(name):
    def population(seed):
        if name == "gaussian":
            return gaussian(300, 3, seed)
        return teacher("heavy_tailed").sample(300, generator(seed)).m

    p = [clusters.cell_type_test(population(s), n_bootstrap=39, seed=s).p_value for s in range(100)]
    assert sum(v <= 0.05 for v in p) <= 11  # binomial(100, .05) exceeds 11 with probability .004


@pytest.mark.slow
def test_power_on_the_four_component_mixture():
    truth = teacher("quadstable")
    p = [clusters.cell_type_test(truth.sample(300, generator(s)).m, n_bootstrap=39, seed=s).p_value for s in range(40)]
    assert sum(v <= 0.05 for v in p) >= 39


def test_elbow_of_the_mixture_is_four_and_of_a_gaussian_one(quadstable):
    net, _ = quadstable
    assert clusters.mixture_likelihood(clusters.features(net.loadings, net.n)).elbow == 4
    assert clusters.mixture_likelihood(gaussian(600, 3, 5)).elbow == 1


def test_one_component_scores_the_gaussian_entropy():
    x = torch.randn(4000, 2, generator=generator(), dtype=torch.float64)
    curve = clusters.mixture_likelihood(x, components=(1,))
    assert float(curve.mean[0]) == pytest.approx(-float(torch.log(torch.tensor(2 * torch.pi))) - 1, abs=0.06)


def test_nulls_have_no_clusters_but_keep_moments_and_what_nu_bends(quadstable):
    net, _ = quadstable
    truth = teacher("quadstable")
    joint = clusters.null_mixture_likelihood(net.loadings, net.n, n_draws=3, components=(1, 2, 4))
    own = clusters.mixture_likelihood(clusters.features(net.loadings, net.n), components=(1, 2, 4)).mean
    assert joint.shape == (3, 3)
    assert torch.allclose(joint.mean(0)[0], own[0], atol=0.1)  # the same moments: the same single Gaussian
    assert (joint[:, 2] - joint[:, 0]).max() < 0.02
    assert own[2] - own[0] > 1
    # a curved nu alone raises the curve of a null without cell types, sigma = 0 included
    bent = clusters.null_mixture_likelihood(
        net.loadings, truth.conditional_mean(net.loadings), truth.conditional_mean, n_draws=2, components=(1, 2, 4)
    )
    assert (bent[:, 2] - bent[:, 0]).min() > 0.1


@pytest.mark.parametrize("method", ["mixture", "kmeans"])
def test_assigned_types_are_the_true_ones_and_match_a_reference(quadstable, method):
    net, truth = quadstable
    x = clusters.features(net.loadings, net.n)
    labels = clusters.assign_cell_types(x, 4, method)
    table = torch.stack([torch.bincount(truth[labels == c], minlength=4) for c in range(4)])
    assert int(table.max(dim=1).values.sum()) >= 595
    reference = clusters.cluster_centres(x, truth, 4)
    matched = clusters.assign_cell_types(x, 4, method, seed=8, reference=reference)
    assert float((matched == truth).double().mean()) > 0.99


def test_mistakes_are_said():
    with pytest.raises(UserError, match="components"):
        clusters.mixture_likelihood(gaussian(10, 2, 0))
    with pytest.raises(UserError, match="ten neurons"):
        clusters.cell_type_test(gaussian(8, 2, 0))
    with pytest.raises(UserError, match="student"):
        clusters.cell_type_test(gaussian(80, 2, 0), null="uniform")
    with pytest.raises(UserError, match="kmeans"):
        clusters.assign_cell_types(gaussian(80, 2, 0), 2, method="ward")
