"""The rank by cross-validation: the rule on errors made up for it, and the rank of networks that is known."""

import pytest
import torch
from rate_networks import make_network, record

from connector.analysis import rank_choice, readout_checks
from connector.analysis.rank_choice import _chosen, choose_rank
from connector.errors import UserError
from connector.lrrnn.spikes.baselines import fit_baseline
from connector.types import Recording


def errors(*by_rank, spread=0.0):
    """(ranks, 40 samples) of 20 trials; ``spread``: how far the trials differ in what the ranks gain."""
    differ = spread * torch.tensor([1.0, -1.0]).double().repeat(10).repeat_interleave(2)
    return torch.stack([x + i * differ for i, x in enumerate(by_rank)]), torch.arange(20).repeat_interleave(2)


def flat(*by_rank):
    return [torch.full((40,), x, dtype=torch.float64) for x in by_rank]


def test_the_smallest_rank_within_one_standard_error_or_half_a_percent():
    made, trial = errors(*flat(0.5, 0.2, 0.15, 0.16))
    found = _chosen(made, trial, 1.0)
    assert (found.rank, found.best) == (3, 3)
    assert found.excess == pytest.approx((0.35, 0.05, 0, 0.01))
    made, trial = errors(
        *flat(0.5, 0.2, 0.15, 0.16), spread=0.25
    )  # standard error of 3 against 2: .25 / sqrt(20) = .056
    found = _chosen(made, trial, 1.0)
    assert (found.rank, found.best) == (2, 3)
    assert found.excess_errors[1] == pytest.approx(0.25 / 20**0.5)
    made, trial = errors(*flat(0.5, 0.1539, 0.15))  # .0039 of .85
    assert _chosen(made, trial, 1.0).rank == 2
    scaled = _chosen(100 * made, trial, 100.0)
    assert (scaled.rank, scaled.errors) == (2, pytest.approx((0.5, 0.1539, 0.15)))


def test_the_rank_of_a_network_is_found(monkeypatch):
    monkeypatch.setattr(readout_checks, "N_SAMPLES", 300)
    net, tried = make_network("softplus", 40, 2, n_inputs=1, has_bias=True, seed=3), []
    found = choose_rank(record(net, 24, 20, 0.1, ragged=True), torch.arange(24), tried=tried.append)
    assert (found.rank, found.best) == (2, 2)
    assert tried == [1, 2, 3, 4]  # what grows again is not followed


def spikes_of(rank, neurons, trials, noise=0.1, seed=0, hz=7.0):
    """Counts of some of a network's neurons, whose states carry noise of their own, in bins of 10 ms."""
    g = torch.Generator().manual_seed(seed)
    net = make_network("softplus", 8 * neurons, rank, has_bias=True, seed=seed)
    z = [1.2 * torch.randn(trials, rank, generator=g).double()]
    for _ in range(59):
        step = net.simulate(z[-1], 2)[:, 1]
        z.append(step + noise * torch.randn(trials, rank, generator=g).double())
    rates = net.rates(torch.stack(z, 1))[..., :neurons]
    counts = torch.poisson((0.01 * hz * rates).float(), generator=g)
    return Recording(counts, "spikes", torch.full((trials,), 60), 0.1, "softplus", bin_s=0.01)


def chosen_of_spikes(recording):
    trials = torch.arange(recording.n_trials)
    return choose_rank(recording, trials, baseline=fit_baseline(recording, trials, "constant"))


def test_the_rank_of_a_network_is_found_from_its_spikes(monkeypatch):
    monkeypatch.setattr(rank_choice, "N_BLOCKS", 300)
    found = chosen_of_spikes(spikes_of(2, 40, 80, seed=3))
    assert (found.rank, found.best) == (2, 2)
    assert found.errors[1] < found.errors[0] < 0  # bits per spike beyond those without states


def test_what_no_rank_can_be_chosen_for_is_refused():
    rates = record(make_network(k=12), 6, 10, 0.1)
    for given, words in (
        ((record(make_network(k=6), 6, 10, 0.1), torch.arange(6)), "8 neurons or more"),
        ((rates, torch.arange(2)), "3 trials or more"),
    ):
        with pytest.raises(UserError, match=words):
            choose_rank(*given)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ranks_of_twenty_networks():
    """Sizes, activations, noise and inputs drawn at random; 18 of 20 at least."""
    right = 0
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)

        def one_of(values, g=g):
            return values[int(torch.randint(len(values), (1,), generator=g))]

        rank, activation = 1 + seed % 4, one_of(["tanh", "softplus", "relu", "sigmoid"])
        noise = one_of([0.05, 0.1, 0.2, 0.4, 0.8]) * (0.25 if activation == "sigmoid" else 1)
        neurons, trials, n_inputs = one_of(range(30, 300)), one_of(range(15, 120)), one_of([0, 1])
        net = make_network(activation, neurons, rank, n_inputs, has_bias=activation != "tanh", seed=seed)
        found = choose_rank(record(net, trials, 50, noise, seed=seed), torch.arange(trials))
        right += found.rank == rank
    assert right >= 18


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ranks_of_twenty_networks_from_spikes():
    """Of rank 1 to 4, 40 to 120 neurons at about 4 to 15 Hz, noise of the states up to .2 a step: 18 of 20 at least."""
    right = 0
    for seed in range(20):
        g = torch.Generator().manual_seed(100 + seed)
        neurons, trials = (int(torch.randint(*span, (1,), generator=g)) for span in ((40, 120), (100, 400)))
        noise, hz = 0.2 * float(torch.rand(1, generator=g)), 4 + 6 * float(torch.rand(1, generator=g))
        right += chosen_of_spikes(spikes_of(1 + seed % 4, neurons, trials, noise, seed, hz)).rank == 1 + seed % 4
    assert right >= 18
