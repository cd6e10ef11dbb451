"""Least squares: the answer of smallest norm, and the same one each time; leading eigenvectors; sums."""

from pathlib import Path

import torch

from connector.numerics import leading_vectors, least_squares, sum_of_trials

ROOT = Path(__file__).resolve().parent.parent


def test_a_design_short_of_full_rank_gets_the_answer_of_smallest_norm():
    generator = torch.Generator().manual_seed(0)
    half, targets = (torch.randn(3, 50, k, generator=generator, dtype=torch.float64) for k in (2, 4))
    found = least_squares(torch.cat([half, half], dim=2), targets)
    once = torch.linalg.inv(half.mT @ half) @ half.mT @ targets
    torch.testing.assert_close(found, torch.cat([once, once], dim=1) / 2)


def test_one_input_gives_one_answer():
    generator = torch.Generator().manual_seed(0)
    design = torch.randn(4000, 100, generator=generator, dtype=torch.float64)[:, :3]
    targets = torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    answers = {tuple(least_squares(design, targets).flatten().tolist()) for _ in range(500)}
    assert len(answers) == 1  # torch.linalg.lstsq by its default gives two or more here


def test_nothing_else_calls_the_solver_whose_answers_differ():
    files = [*ROOT.glob("connector/**/*.py"), *ROOT.glob("experiments/*.py")]
    assert [file.name for file in files if "linalg.lstsq(" in file.read_text()] == ["numerics.py"]


def test_sums_of_trials_are_as_good_as_double_precision():
    x = 100 + torch.rand(3, 40_000, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sum_of_trials(x), x.double().sum((0, 1)), rtol=1e-6, atol=0)
    some = torch.tensor([2, 0])
    torch.testing.assert_close(sum_of_trials(x, some), x[some].double().sum((0, 1)), rtol=1e-6, atol=0)


def test_leading_vectors_are_those_of_all_eigenvectors_whether_the_next_ones_are_far_or_near():
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(450, 450, generator=generator, dtype=torch.float64)).Q
    for rest in (1e-6, 0.98):
        values = torch.cat([torch.tensor([4.0, 2.0, 1.0]).double(), rest * torch.linspace(1, 0, 447).double()])
        found = leading_vectors(turn * values @ turn.T, 3)
        torch.testing.assert_close((found.T @ turn[:, :3]).abs(), torch.eye(3).double(), atol=1e-7, rtol=0)
