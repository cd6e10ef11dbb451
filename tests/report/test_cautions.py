"""Each sign of trouble is said once, where it is too large."""

import pytest

from connector.report import cautions
from connector.report.glossary import METRICS


@pytest.mark.parametrize(
    ("metrics", "options", "words"),
    [
        ({cautions.SATURATED: 0.6}, {}, "60 % of the neurons"),
        ({cautions.LEFT_REGION: 0.2}, {}, "in 20 % of the test trials"),
        ({cautions.DRIVE_GAIN: 1.06}, {}, "1.06 times as much as recorded"),
        ({cautions.DRIVE_GAIN: 0.94}, {}, "connectivity.recorded_fraction"),
        ({cautions.OUTSIDE_SUPPORT: 0.07}, {}, "7 % of the sampled loadings"),
        ({}, {"explained": -0.1}, "no better than each neuron's mean"),
        ({}, {"finite": False}, "not finite"),
        ({"lrrnn/bits_per_spike": -0.01}, {}, "each neuron's mean rate"),
        ({"lrrnn/bits_per_spike": 0.01, "lrrnn/bits_per_spike_null_drift": 0.02}, {}, "drift across the session"),
        ({"dynamics/field_error": 1.2}, {}, "field of zero"),
    ],
)
def test_each_sign_has_one_sentence(metrics, options, words):
    (said,) = cautions.of_signs(metrics, **options)
    assert words in said


def test_a_good_run_is_not_warned_of():
    good = {
        cautions.SATURATED: 0.2,
        cautions.LEFT_REGION: 0.0,
        cautions.OUTSIDE_SUPPORT: 0.01,
        cautions.DRIVE_GAIN: 1.2,
        cautions.DRIVE_GAIN_SD: 0.11,  # the latents are too noisy to tell
        "dynamics/field_error": 0.02,
    }
    good |= {"lrrnn/bits_per_spike": 0.09, "lrrnn/bits_per_spike_null_drift": 0.03}
    assert cautions.of_signs(good, explained=0.9) == []
    named = {
        cautions.SATURATED,
        cautions.LEFT_REGION,
        cautions.DRIVE_GAIN,
        cautions.DRIVE_GAIN_SD,
        cautions.OUTSIDE_SUPPORT,
    }
    assert named <= METRICS.keys()
