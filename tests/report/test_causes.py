"""A text for each cause, with its number and what to do; none where nothing is wrong."""

import pytest

from connector.report import causes, cautions, determined
from connector.report.glossary import METRICS

CHECKED = {
    "lrrnn/check_rank": 0.31, "lrrnn/check_rank_error": 0.05, "lrrnn/check_drift": 0.21, "lrrnn/check_drift_error": 0.04,
    "lrrnn/check_activation_relu": 0.4, "lrrnn/check_activation_relu_error": 0.03,
    "lrrnn/check_activation_sigmoid": 0.2, "lrrnn/check_activation_sigmoid_error": 0.03,
    "lrrnn/check_residual_correlation": 0.9, "lrrnn/check_residual_correlation_error": 0.01,
    "lrrnn/check_process_noise": 0.12, "lrrnn/check_added_noise": 0.4,
    "lrrnn/check_time_step": 2.0, "lrrnn/check_time_step_evidence": 40.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("rank", ("1 more latent dimension removes 31 %", "lrrnn.rank is too low. What to do: raise it by 1")),
        ("input", ("moves by 0.4 of its standard deviation", "not recorded", "add it to the inputs")),
        ("activation_relu", ("Replacing the stated activation by relu removes 40 %", "set data.activation=relu")),
        ("drift", ("change over the session removes 21 %", "fit parts of the session")),
        ("smoothing", ("correlate by 0.90", "were smoothed", "unsmoothed")),
        ("process_noise", ("0.12 of their standard deviation", "cannot tell which", "too narrow")),
        (
            "time_step",
            (
                "2 times the stated time step",
                "or nu is not as smooth as the prior expects",
                "multiply data.alpha by 2",
                "data.activation",
            ),
        ),
    ],
)
def test_each_cause_has_one_text_with_its_remedy(cause, words):
    (said,) = cautions.of_signs({**CHECKED, f"lrrnn/cause_{cause}": 1.0})
    assert all(word in said for word in words), said
    assert f"lrrnn/cause_{cause}" in METRICS


@pytest.mark.parametrize(("cause", "other"), [("rank", "set lrrnn.rank=6"), ("fewer", "set lrrnn.rank=4")])
def test_auto_is_no_remedy_for_the_rank_that_it_chose(cause, other):
    metrics = {"lrrnn/check_alpha": 0.0, "lrrnn/check_fewer": -0.01, f"lrrnn/cause_{cause}": 1.0}
    assert "or set lrrnn.rank=auto" in causes.of_causes(metrics)[0]
    said = causes.of_causes({**metrics, "lrrnn/rank_chosen": 5.0})[0]
    assert f"{other} in place of auto, which chose 5" in said


def test_the_remedy_of_a_whole_network_says_how_many_dimensions_are_missing():
    assert "raise it by 2 or more, or set" in causes.of_causes({"lrrnn/check_alpha": 1.0, "lrrnn/cause_rank": 2.0})[0]


def test_checks_alone_say_nothing():
    assert cautions.of_signs(CHECKED) == []
    assert not causes.named(CHECKED)
    assert CHECKED.keys() <= METRICS.keys()


def test_what_cannot_be_told_apart_is_named_together():
    near = {**CHECKED, "lrrnn/check_activation_sigmoid": 0.38, "lrrnn/cause_activation_relu": 1.0}
    assert "activation by relu or sigmoid removes" in causes.of_causes(near)[0]
    blind = {key: value for key, value in CHECKED.items() if key != "lrrnn/check_added_noise"}
    assert "Either lrrnn.rank is too low, or an input" in causes.of_causes({**blind, "lrrnn/cause_rank": 2.0})[0]


def test_a_named_cause_stands_in_place_of_what_leaves_it_open():
    poor = {**CHECKED, "lrrnn/rates_r2": 0.1, "lrrnn/rates_r2_pca": 0.7}
    assert "check data.alpha, data.activation and lrrnn.rank" in cautions.of_signs(poor)[0]
    (said,) = cautions.of_signs({**poor, "lrrnn/cause_rank": 1.0})
    assert "raise it by 1" in said
    given = {**poor, "lrrnn/rates_r2_linear": 0.7, "lrrnn/cause_rank": 1.0}
    assert "do not belong together" in cautions.of_signs(given)[0]

    class Found:
        warnings, converged, predicted_error = ("Residuals are correlated.",), True, 0.6

    assert "leave nu open" in determined.cautions(Found)[1]
    (said,) = determined.cautions(Found, cause_named=True)
    assert "until then nu is open" in said
