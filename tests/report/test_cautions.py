"""Each sign of trouble is said once, where it is too large."""

import pytest

from connector.report import cautions
from connector.report.glossary import METRICS


@pytest.mark.parametrize(
    ("metrics", "options", "words"),
    [
        ({cautions.SATURATED: 0.6}, {}, "60 % of the neurons"),
        ({cautions.LEFT_REGION: 0.2}, {}, "In 20 % of the test trials"),
        ({cautions.DRIVE_GAIN: 1.06, cautions.DRIVE_GAIN_SD: 0.01}, {}, "1.06 times as much as recorded (1 is right)."),
        ({cautions.DRIVE_GAIN: 1.06, cautions.DRIVE_GAIN_SD: float("nan")}, {}, "one training trial does not tell"),
        ({cautions.DRIVE_GAIN: 0.94}, {}, "connectivity.recorded_fraction"),
        ({cautions.OUTSIDE_SUPPORT: 0.07}, {}, "7 % of the sampled loadings"),
        (
            {"lrrnn/rates_r2": -0.1, "lrrnn/rates_r2_pca": -0.1},
            {},
            "no better than each neuron's mean over training trials",
        ),
        (
            {"lrrnn/rates_r2": 0.13, "lrrnn/rates_r2_pca": 0.7},
            {},
            "13 % of the variance of the rates, principal components",
        ),
        ({"lrrnn/rates_r2": 0.13, "lrrnn/rates_r2_pca": 0.7}, {}, "data.alpha"),
        (
            {"lrrnn/rates_r2": 0.81, "lrrnn/rates_r2_linear": 0.95, "lrrnn/rates_r2_pca": 0.96},
            {},
            "The file's latents and MBD explain 81 %",
        ),
        (
            {"lrrnn/rates_r2": -1.5, "lrrnn/rates_r2_linear": 0.0, "lrrnn/rates_r2_pca": 0.96},
            {},
            "the order of neurons and trials",
        ),
        ({"lrrnn/rollout_r2": -0.4}, {}, "Its dynamics are not the recorded ones"),
        ({"lrrnn/origin_distance": 2.0}, {}, "an origin 2 standard deviations of the latents away"),
        ({}, {"finite": False}, "not finite"),
        ({"lrrnn/bits_per_spike": -0.01}, {}, "each neuron's mean rate"),
        ({"lrrnn/bits_per_spike": 0.01, "lrrnn/bits_per_spike_null_drift": 0.02}, {}, "drift across the session"),
        (
            {"lrrnn/bits_per_spike": 0.0711, "lrrnn/bits_per_spike_null_drift_psth": 0.0703},
            {},
            "no better than mean responses: the gain is 0.0008",
        ),
        (
            {"lrrnn/bits_per_spike_prior": 0.05, "lrrnn/bits_per_spike_null_drift_psth": 0.07},
            {},
            "the rollout of the fit",
        ),
        (
            {"lrrnn/co_smoothing": 0.05, "lrrnn/bits_per_spike_null_drift_psth": 0.07},
            {},
            "from those of the others no better",
        ),
        (
            {"lrrnn/co_smoothing": 0.09, "lrrnn/co_smoothing_gain": 0.003, "lrrnn/co_smoothing_gain_error": 0.002},
            {},
            "the gain is 0.003 ± 0.002",
        ),
        ({"lrrnn/posterior_seen": 0.11}, {}, "lower lrrnn.rank by one"),
        ({"dynamics/field_error": 1.2}, {}, "field of zero"),
        ({"dynamics/field_error": 0.03, "dynamics/field_error_projected": 1.15}, {}, "even after projection"),
    ],
)
def test_each_sign_has_one_text_with_what_to_do(metrics, options, words):
    (said,) = cautions.of_signs(metrics, **options)
    assert words in said
    wrong, remedy = said.split(cautions.TO_DO)
    assert wrong.endswith(".")
    assert remedy.endswith(".")


def test_a_good_run_is_not_warned_of():
    good = {
        cautions.SATURATED: 0.2,
        cautions.LEFT_REGION: 0.0,
        cautions.OUTSIDE_SUPPORT: 0.01,
        cautions.DRIVE_GAIN: 1.2,
        cautions.DRIVE_GAIN_SD: 0.11,  # the latents are too noisy to tell
        "dynamics/field_error": 0.02,
        "dynamics/field_error_projected": 0.3,  # of a small network
    }
    good |= {"lrrnn/bits_per_spike": 0.09, "lrrnn/bits_per_spike_null_drift": 0.03}
    good |= {"lrrnn/bits_per_spike_gain": 0.06, "lrrnn/bits_per_spike_gain_error": 0.01}
    assert cautions.of_signs(good | {"lrrnn/rates_r2": 0.9, "lrrnn/rates_r2_pca": 0.95}) == []
    given = {"lrrnn/rates_r2": 0.5, "lrrnn/rates_r2_pca": 0.6, "lrrnn/rates_r2_linear": 0.48}  # few noisy neurons
    assert cautions.of_signs(good | given) == []
    far = {"dynamics/field_error": 0.4, "dynamics/field_error_projected": 0.6}  # as do infinitely many neurons
    assert cautions.of_signs(good | far) == []
    named = {
        cautions.SATURATED,
        cautions.LEFT_REGION,
        cautions.DRIVE_GAIN,
        cautions.DRIVE_GAIN_SD,
        cautions.OUTSIDE_SUPPORT,
    }
    assert named <= METRICS.keys()


def test_a_caution_is_taken_apart_into_word_wrong_and_remedy():
    assert cautions.parted("Warning: It is so. What to do: mend it.") == ("Warning", "It is so.", "Mend it.")
    assert cautions.parted("Caution: rates are few.") == ("Caution", "rates are few.", "")  # of an older run
    assert cautions.parted("Note that: it is.") == ("Caution", "Note that: it is.", "")
    few, nu, sign = cautions.cautions(5, 3, _Open(), ["It is so. What to do: mend it."])
    assert [cautions.parted(said).word for said in (few, nu, sign)] == ["Caution", "Caution", "Warning"]
    assert all(cautions.parted(said).remedy for said in (few, nu, sign))


class _Open:
    warnings, converged, predicted_error = (), True, 0.6
