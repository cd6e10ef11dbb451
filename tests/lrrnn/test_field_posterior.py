import pytest
import torch
from torch.testing import assert_close

from connector.lrrnn.field_posterior import FieldPosterior, likelihood_of
from connector.lrrnn.gauge import Gauge
from connector.types import Loadings


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def posterior(p=4, rank=2, neurons=6, n_inputs=1):
    precision = normal(0, p * rank, p * rank)
    return FieldPosterior(
        "tanh",
        Loadings(normal(1, neurons, rank), normal(2, neurons, n_inputs) if n_inputs else None, normal(3, neurons)),
        normal(4, neurons, p),
        normal(5, p, rank),
        precision @ precision.T,
        normal(6, p * rank),
        normal(7, 3, p, rank),
        torch.zeros(rank, dtype=torch.float64),
        torch.eye(rank, dtype=torch.float64),
        torch.full((1,), 50.0, dtype=torch.float64),
    )


@pytest.mark.parametrize("n_inputs", [0, 1])
def test_the_drive_moves_with_the_latents(n_inputs):
    field, z, u = posterior(n_inputs=n_inputs), normal(8, 20, 2), normal(9, 20, n_inputs) if n_inputs else None
    gauge = Gauge(torch.tensor([[0.8, 0.5], [-0.3, 1.4]], dtype=torch.float64), torch.tensor([0.6, -1.2]).double())
    moved = field.moved(gauge)
    assert_close(moved.drive(gauge.latents(z), u), gauge.latents(field.drive(z, u)))
    assert_close(moved.drives(gauge.latents(z), u), gauge.latents(field.drives(z, u)))
    # the likelihood of the same change of the drive is the same
    change = normal(10, *field.mean.shape)
    there = (change @ gauge.matrix.T).reshape(-1)
    change = change.reshape(-1)
    assert_close(there @ moved.precision @ there, change @ field.precision @ change)
    assert_close(there @ moved.gradient, change @ field.gradient)
    back = moved.moved(gauge.inverse)
    assert_close(back.drive(z, u), field.drive(z, u))


def test_likelihood_of_a_gaussian_posterior_is_recovered():
    root = normal(0, 6, 6)
    prior, information = (
        root @ root.T + torch.eye(6),
        torch.diag(torch.tensor([50.0, 9.0, 4.0, 2.0, 0.0, 0.0])).double(),
    )
    turn = torch.linalg.qr(normal(1, 6, 6))[0]
    information = turn @ information @ turn.T
    peak = information @ normal(2, 6)
    covariance = torch.linalg.inv(information + torch.linalg.inv(prior))
    mean = covariance @ peak
    precision, gradient = likelihood_of(mean, covariance, prior, most=1 - 1e-9)
    assert_close(precision, information, atol=1e-5, rtol=1e-5)
    assert_close(gradient + precision @ mean, peak, atol=1e-5, rtol=1e-5)


def test_arrays_hold_all_of_it():
    field = posterior()
    arrays = field.arrays()
    tensors = {name: x for name, x in arrays.items() if torch.is_tensor(x)}
    again = FieldPosterior.of_arrays(tensors, arrays["field_activation"])
    assert_close(again.drives(normal(8, 5, 2), normal(9, 5, 1)), field.drives(normal(8, 5, 2), normal(9, 5, 1)))
    assert FieldPosterior.of_arrays({}, "tanh") is None
    with pytest.raises(ValueError, match="field_precision"):
        FieldPosterior.of_arrays(tensors | {"field_precision": torch.eye(3)}, "tanh")
