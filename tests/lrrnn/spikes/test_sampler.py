import math
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from connector.connectivity.diagnosis import diagnose
from connector.connectivity.nu.field import sampled_basis
from connector.data.folds import Fold
from connector.lrrnn.gauge import Gauge
from connector.lrrnn.spikes import posterior
from connector.lrrnn.spikes import sampler as module
from connector.lrrnn.spikes.baselines import fit_baseline
from connector.lrrnn.spikes.covariances import inverse_wishart
from connector.lrrnn.spikes.paths import Counts, log_target
from connector.lrrnn.spikes.posterior import Start, effective_size, sample_posterior
from connector.lrrnn.spikes.sampler import LEAST_NOISE, PathSampler
from connector.report.cautions import LEAST_SEEN
from connector.stages.outputs import estimate_conditional_mean
from connector.types import Loadings, Recording

ALPHA, SCALE = 0.1, 0.5


def simulated(trials=40, steps=40, neurons=30, noise=0.15, seed=0, cubic=True):
    """Spikes of softplus neurons whose latent states are drawn to a ring; not ``cubic``: far away no faster than by the leak,
    as in a network."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def drift(z):
        squares = z.square().sum(1, keepdim=True)
        return z * (1 - squares / 2 if cubic else 2 / (1 + squares / 2) - 1)

    z = [1.2 * normal(trials, 2)]
    for _ in range(steps - 1):
        z.append(z[-1] + ALPHA * drift(z[-1]) + noise * normal(trials, 2))
    z = torch.stack(z, 1)
    loadings = Loadings(normal(neurons, 2), None, 0.5 + 0.3 * normal(neurons))
    rate = SCALE * torch.nn.functional.softplus(z @ loadings.m.T + loadings.d)
    counts = torch.poisson(rate.float(), generator=g)
    return SimpleNamespace(z=z, loadings=loadings, counts=counts, drift=drift, noise=noise, trials=trials, steps=steps)


def sampler_of(truth, seed=0):
    mask = torch.ones(truth.trials, truth.steps, dtype=torch.bool)
    counts = Counts.of(truth.counts, mask)
    sampler = PathSampler(
        counts, sampled_basis("softplus", ALPHA, 0), truth.loadings.stack(), math.log(SCALE), truth.z, seed
    )
    sampler.adapting = False
    return sampler


def test_inverse_wishart_has_its_mean():
    g = torch.Generator().manual_seed(0)
    scatter = torch.tensor([[4.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    mean = torch.stack([inverse_wishart(scatter, 12, g) for _ in range(1500)]).mean(0)
    assert_close(mean, scatter / (12 - 2 - 1), rtol=0.06, atol=0.015)


def test_coefficients_given_paths_are_those_of_bayesian_regression(monkeypatch):
    sampler = sampler_of(simulated())
    sampler.settle()
    z, p = sampler.z, sampler.p
    monkeypatch.setattr(module, "_TRIES", 0)  # kernel and amplitudes stay
    draws, mean, covariance = sampler.coefficients(400)
    b = sampler.field(z[:, :-1].reshape(-1, 2), None)
    y = ((z[:, 1:] - (1 - ALPHA) * z[:, :-1]) / ALPHA).reshape(-1, 2)
    gauge = sampler.prior.gauge
    prior = torch.kron(sampler.prior.covariance(sampler.family, sampler.theta), gauge @ gauge)
    noise = torch.linalg.inv(p.q / ALPHA**2).contiguous()
    information = torch.kron((b.T @ b).contiguous(), noise)
    expected = torch.linalg.inv(torch.linalg.inv(prior) + information)
    assert_close(covariance, expected, rtol=1e-3, atol=1e-6 * float(expected.abs().max()))
    assert_close(
        mean.reshape(-1), expected @ (b.T @ y @ noise).reshape(-1), rtol=1e-3, atol=1e-3 * float(mean.abs().max())
    )
    drives = torch.stack([(b[:50] @ c).reshape(-1) for c in draws])
    basis = torch.kron(b[:50].contiguous(), torch.eye(2, dtype=torch.float64))
    sd = (basis @ expected @ basis.T).diagonal().sqrt()
    scores = (drives.mean(0) - (b[:50] @ mean).reshape(-1)) / sd * 400**0.5
    assert float(scores.abs().max()) < 4.5
    assert 0.85 < float((drives.std(0) / sd).mean()) < 1.15


def test_the_gauge_leaves_every_rate():
    sampler = sampler_of(simulated())
    rows = sampler.z.reshape(-1, 2)
    before = rows @ sampler.p.loadings[:, :2].T + sampler.p.loadings[:, 2]
    shift = torch.tensor([0.3, -0.8], dtype=torch.float64)
    turn = torch.tensor([[1.5, 0.2], [-0.4, 0.7]], dtype=torch.float64)
    sampler.z = sampler.z @ turn.T + shift
    sampler.mode = sampler.z
    loadings = sampler.p.loadings.clone()
    loadings[:, :2] = loadings[:, :2] @ torch.linalg.inv(turn)
    loadings[:, 2] -= loadings[:, :2] @ shift
    sampler.p = module.replace(sampler.p, loadings=loadings)
    sampler.fix_gauge()
    rows = sampler.z.reshape(-1, 2)
    assert_close(rows @ sampler.p.loadings[:, :2].T + sampler.p.loadings[:, 2], before)
    assert_close(rows.mean(0), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-9)
    assert_close(torch.cov(rows.T), torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-3)
    agreement = rows.T @ sampler.reference
    assert_close(agreement, agreement.T)  # no rotation brings it nearer to the reference


def test_paths_keep_their_distribution():
    """With all else known the sweeps of the paths have to leave their posterior as it is: of many trials whose paths are
    drawn from the prior together with their counts, true states keep uniform ranks."""
    truth = simulated(trials=60, steps=12)
    sampler = sampler_of(truth)
    sampler.settle()
    sampler.coefficients(1)
    p = module.replace(
        sampler.p,
        q=0.15**2 * torch.eye(2).double(),
        start_mean=torch.zeros(2).double(),
        start_covariance=torch.eye(2).double(),
    )
    g = torch.Generator().manual_seed(3)
    ranks = []
    for _ in range(4):
        z = [torch.randn(60, 2, generator=g, dtype=torch.float64)]
        for _ in range(11):
            step = 0.9 * z[-1] + 0.1 * sampler.field(z[-1], None) @ p.c
            z.append(step + 0.15 * torch.randn(60, 2, generator=g, dtype=torch.float64))
        z = torch.stack(z, 1)
        rate = math.exp(p.log_scale) * torch.nn.functional.softplus(z @ p.loadings[:, :2].T + p.loadings[:, 2])
        counts = Counts.of(torch.poisson(rate.float(), generator=g), torch.ones(60, 12, dtype=torch.bool))
        one = sampler_of(truth, seed=int(torch.randint(1000, (1,), generator=g)))
        one.counts, one.p, one.field, one.mode, one.z = counts, p, sampler.field, 0 * z, 0 * z
        one.rho, one.rate = torch.zeros(60).double(), torch.ones(60).double()
        one.settle()
        drawn = []
        for _ in range(24):
            one.paths()
            drawn.append(one.z)
        below = (torch.stack(drawn[4:])[:, :, [2, 9]] < z[:, [2, 9]]).double().mean(0)
        ranks.append(below.reshape(-1))
    ranks = torch.cat(ranks)
    share = torch.histc(ranks, 4, 0, 1) / len(ranks)
    assert float((share - 0.25).abs().max()) < 0.06, share


def test_coefficients_scatter_about_the_maximum_of_their_evidence():
    """From anywhere, with their information: of whitened distances the mean is 0 and the variance 1."""
    sampler = sampler_of(simulated(trials=60, steps=30))
    sampler.p = module.replace(sampler.p, q=0.15**2 * torch.eye(2).double())
    sampler.settle()
    sampler.coefficients()
    sampler.paths()
    sampler._see()
    best = sampler.p
    for _ in range(6):
        there = sampler._at_mode(best, 3)
        if sampler.known is None:
            sampler._learn()
        best = module.replace(best, c=best.c + sampler._lead(best, *there[:2])[0])
    sampler.known, sampler.learnt = None, 0
    sampler.p, (sampler.mode, sampler.factor, sampler.peak) = best, sampler._at_mode(best, 3)
    sampler._learn()
    _, root, _ = sampler._lead(best, sampler.mode, sampler.factor)
    away = torch.linalg.solve_triangular(root.T, 3 * torch.ones(len(root), 1).double() / len(root) ** 0.5, upper=True)
    sampler.p = module.replace(best, c=best.c + away.view_as(best.c))
    sampler.mode, sampler.factor, sampler.peak = sampler._at_mode(sampler.p, 3)
    found = []
    for _ in range(80):
        sampler.drift()
        found.append((root.T @ (sampler.p.c - best.c).reshape(-1, 1))[:, 0])
    found = torch.stack(found[10:])
    assert len({tuple(x.tolist()) for x in found}) > 25  # accepted
    assert float(found.mean(0).square().mean()) < 0.25
    assert 0.6 < float(found.square().mean()) < 1.5


@pytest.mark.slow
def test_dynamics_without_noise_are_found_to_have_next_to_none():
    truth = simulated(trials=60, noise=0.0)
    sds = []
    for seed in range(5):  # a chain of so few sweeps may be at twice the least by itself
        draws = sampler_of(truth, seed).run(45, 35)
        sds.append(torch.linalg.eigvalsh(torch.stack(draws.q)).sqrt())
    assert float(torch.stack(sds).min()) >= LEAST_NOISE
    assert float(torch.cat(sds).mean(0).max()) < 2 * LEAST_NOISE


def test_effective_size_of_a_known_process():
    g = torch.Generator().manual_seed(0)
    x, rho = [0.0], 0.8
    for _ in range(40_000):
        x.append(rho * x[-1] + float(torch.randn(1, generator=g)))
    expected = 40_000 * (1 - rho) / (1 + rho)
    assert abs(effective_size(torch.tensor(x)) / expected - 1) < 0.15


def start_of(truth):
    """Not the truth: another gauge, noisy latents."""
    gauge = Gauge(torch.tensor([[0.8, 0.1], [0.0, 1.1]], dtype=torch.float64), torch.tensor([0.2, -0.1]).double())
    noisy = truth.z + 0.3 * torch.randn(truth.z.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return Start(gauge.latents(noisy), gauge.loadings(truth.loadings), 1.3 * SCALE, None)


def recording_of(truth, activation="softplus"):
    lengths = torch.full((truth.trials,), truth.steps)
    return Recording(truth.counts, "spikes", lengths, ALPHA, activation, bin_s=0.01)


def test_hand_over_is_complete_and_one_seed_gives_one_result():
    truth = simulated(trials=24, steps=20)
    fold = Fold(torch.arange(16), torch.arange(16, 20), torch.arange(20, 24))
    basis = sampled_basis("softplus", ALPHA, 0)
    found, mixing = sample_posterior(start_of(truth), recording_of(truth), fold, basis, sweeps=6)
    again, _ = sample_posterior(start_of(truth), recording_of(truth), fold, basis, sweeps=6)
    assert_close(found.latents.z, again.latents.z, rtol=0, atol=0)
    assert found.field.draws.shape[0] == 4 * module.PathSampler.draws_of_c
    assert_close(found.latents.drive, found.field.drive(found.latents.z.reshape(-1, 2)).view_as(found.latents.z))
    # held-out trials are read in the same gauge
    design = torch.cat([found.latents.z.reshape(-1, 2), torch.ones(24 * 20, 1, dtype=torch.float64)], 1)
    truth_rows, train = truth.z.reshape(-1, 2), torch.arange(16 * 20)
    map_ = torch.linalg.lstsq(design[train], truth_rows[train]).solution
    left = (truth_rows - design @ map_)[16 * 20 :].square().mean() / truth_rows[16 * 20 :].var()
    assert float(left) < 0.3
    assert 0 < mixing.accepted <= 1
    assert mixing.ess > 0
    assert mixing.seen > LEAST_SEEN
    assert float(torch.linalg.eigvalsh(found.field.noise)[0]) >= LEAST_NOISE**2
    # where most of nu is open, or few draws are independent, nothing is said of signs
    choice = SimpleNamespace(estimator="trajectories", regularizer=None, max_states=1000, recorded_fraction=0.1)
    options = SimpleNamespace(connectivity=choice, data=SimpleNamespace(stride=1), seed=0)
    model = estimate_conditional_mean(options, found, None)
    judged = diagnose(model, found.loadings.stack())
    assert judged.signs_told == (model.summary["predicted_error"] <= 0.1 and not model.summary["unbacked"])
    assert not judged.signs_told
    few = module.replace(found, field=module.replace(found.field, effective=torch.tensor([10.0])))
    model = estimate_conditional_mean(options, few, None)
    assert model.summary["unbacked"]
    assert any("neither signs" in said for said in model.summary["warnings"])
    assert not diagnose(model, found.loadings.stack()).calibrated
    # nor where states are read from bins of few spikes
    bins = module.replace(found, field=None, latents=module.replace(found.latents, drive=None))
    model = estimate_conditional_mean(options, bins, None)
    assert model.summary["unbacked"]
    assert not diagnose(model, found.loadings.stack()).calibrated


@pytest.mark.parametrize(("draws", "rounds"), [(3.0, 2), (5.0, 1)])
def test_few_independent_draws_count_as_burn_in(draws, rounds, monkeypatch):
    truth, seen = simulated(trials=12, steps=12), []
    fold = Fold(torch.arange(12), torch.arange(0), torch.arange(0))
    monkeypatch.setattr(posterior, "ENOUGH_DRAWS", 4)
    monkeypatch.setattr(posterior, "judge", lambda *_: posterior.Mixing(draws, 0.0, 1.0, 1.0))
    found, _ = sample_posterior(
        start_of(truth),
        recording_of(truth),
        fold,
        sampled_basis("softplus", ALPHA, 0),
        sweeps=7,
        progress=lambda done, of: seen.append((done, of)),
    )
    total = {1: 7, 2: 3 * 7}[rounds]
    assert seen[-1] == (total - 1, total)
    assert [done for done, _ in seen] == list(range(total))
    kept = {1: 5, 2: 14 - 2}[rounds]  # of the last round alone
    assert len(found.field.draws) == kept * module.PathSampler.draws_of_c


def test_a_latent_dimension_without_spikes_of_its_own_is_not_seen(monkeypatch):
    truth = simulated(trials=24, steps=20)
    fold = Fold(torch.arange(24), torch.arange(0), torch.arange(0))
    start, g = start_of(truth), torch.Generator().manual_seed(7)
    beside = torch.randn(*truth.z.shape[:2], 1, generator=g, dtype=torch.float64)
    m = torch.cat([start.loadings.m, 0.1 * torch.randn(30, 1, generator=g, dtype=torch.float64)], 1)
    start = Start(torch.cat([start.z, beside], 2), Loadings(m, None, start.loadings.d), start.scale, None)
    sampled = (start, recording_of(truth), fold, sampled_basis("softplus", ALPHA, 0))
    _, mixing = sample_posterior(*sampled, sweeps=12)
    assert mixing.seen < LEAST_SEEN
    # The first sweeps that are kept say so, and the others are left out.
    monkeypatch.setattr(posterior, "_FIRST_LOOK", 3)
    monkeypatch.setattr(posterior, "LEAST_SEEN", 2.0)
    done = []
    found, _ = sample_posterior(*sampled, sweeps=12, progress=lambda sweep, of: done.append(sweep))
    assert done == list(range(int(12 * posterior.BURN) + 3))
    assert len(found.field.draws) == 3 * module.PathSampler.draws_of_c


def test_of_a_long_recording_some_trials_are_sampled_and_the_others_read_as_well(monkeypatch):
    truth = simulated(trials=32, steps=20)
    fold = Fold(torch.arange(4, 32), torch.arange(0, 2), torch.arange(2, 4))
    monkeypatch.setattr(posterior, "MOST_WORK", 14 * 20 * (30 + 150))
    sampled = posterior.sampled_trials(recording_of(truth), fold)
    assert len(sampled) == 14
    assert (sampled.min(), sampled.max()) == (4, 31)
    basis = sampled_basis("softplus", ALPHA, 0)
    found, _ = sample_posterior(start_of(truth), recording_of(truth), fold, basis, sweeps=8)
    assert torch.equal(found.fold.train, fold.train)
    beside = [i for i in range(32) if i not in sampled.tolist()]
    design = torch.cat([found.latents.z, torch.ones(32, 20, 1, dtype=torch.float64)], 2)
    map_ = torch.linalg.lstsq(design[sampled].flatten(0, 1), truth.z[sampled].flatten(0, 1)).solution
    left = (truth.z - design @ map_)[beside].square().mean() / truth.z.var()
    assert float(left) < 0.3


@pytest.mark.slow
def test_field_noise_and_scale_are_within_their_bands():
    truth = simulated(trials=300, steps=60, neurons=60, noise=0.1, cubic=False)
    fold = Fold(torch.arange(300), torch.arange(0), torch.arange(0))
    basis = sampled_basis("softplus", ALPHA, 0)
    found, mixing = sample_posterior(start_of(truth), recording_of(truth), fold, basis, sweeps=150)
    moved = found.moved(Gauge.fit(found.latents.z, truth.z, found.latents.lengths, affine=True))
    z = truth.z.reshape(-1, 2)[::20]
    drift, drives = truth.drift(z), moved.field.drives(z) - z
    error = (drives.mean(0) - drift).square().sum().sqrt() / drift.square().sum().sqrt()
    predicted = drives.var(0).sum().sqrt() / drift.square().sum().sqrt()
    assert float(error) < 0.3
    assert 0.4 < float(predicted / error) < 2.5
    low, high = torch.quantile(drives, 0.025, 0), torch.quantile(drives, 0.975, 0)
    assert float(((low <= drift) & (drift <= high)).double().mean()) > 0.75
    assert_close(moved.field.noise.diagonal().sqrt(), torch.full((2,), 0.1).double(), rtol=0.2, atol=0)
    assert mixing.ess > 10


def test_target_of_the_sampler_is_the_models():
    """What the moves compare is the density of counts and paths: it rises towards the truth."""
    truth = simulated()
    sampler = sampler_of(truth)
    sampler.coefficients(1)
    sampler.p = module.replace(sampler.p, q=truth.noise**2 * torch.eye(2).double())
    near = log_target(sampler.counts, sampler.field, sampler.p, truth.z).sum()
    far = log_target(sampler.counts, sampler.field, sampler.p, truth.z + 0.5).sum()
    assert near > far


def test_start_does_not_take_the_course_that_all_trials_share():
    """All trials begin at one state: what their neurons have in common over time is the dynamics', not the baseline's."""
    truth = simulated(trials=80, steps=40)
    g = torch.Generator().manual_seed(1)
    z = [torch.tensor([[2.0, 0.0]]).double() + 0.2 * torch.randn(80, 2, generator=g, dtype=torch.float64)]
    turn = torch.tensor([[0.98, 0.15], [-0.15, 0.98]]).double()
    for _ in range(39):
        z.append(z[-1] @ turn)
    z = torch.stack(z, 1)
    rate = SCALE * torch.nn.functional.softplus(z @ truth.loadings.m.T + truth.loadings.d)
    truth.counts = torch.poisson(rate.float(), generator=g)
    recording = recording_of(truth)
    fold = Fold(torch.arange(70), torch.arange(70, 75), torch.arange(75, 80))
    start = Start.of_counts(recording, fold, 2, fit_baseline(recording, fold.train, "standard"))
    assert start.offset is None  # no drift is known of
    design = torch.cat([start.z.reshape(-1, 2), torch.ones(80 * 40, 1, dtype=torch.float64)], 1)
    left = z.reshape(-1, 2) - design @ torch.linalg.lstsq(design, z.reshape(-1, 2)).solution
    assert float(left.square().mean() / z.reshape(-1, 2).var()) < 0.1


def test_drift_does_not_take_the_states_that_neighbouring_trials_share():
    """The counts of 20 trials tell where their states lie on average; were that drift, states would be seen less it."""
    truth = simulated(trials=80, steps=30)
    recording = module.replace(recording_of(truth), trial_times_s=torch.arange(80, dtype=torch.float64))
    fold = Fold(torch.arange(80), torch.arange(0), torch.arange(0))
    baseline = fit_baseline(recording, fold.train, "local")
    drift = baseline.drift.double() - baseline.drift.double().mean(0)
    start = Start.of_counts(recording, fold, 2, baseline)

    def shift(drift):
        return float((torch.linalg.pinv(truth.loadings.m) @ drift.T).square().mean().sqrt())

    assert shift(start.offset[:, 0].double()) < 0.1 * shift(drift)
