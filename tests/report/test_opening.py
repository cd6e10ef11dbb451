"""The opening of a report says what its numbers say: six points at most in short sentences, and what else was found."""

import re
from dataclasses import replace

import pytest
import torch

from connector.analysis.attractor_probabilities import NOTHING
from connector.connectivity.diagnosis import Diagnosis
from connector.report import nulls
from connector.report.cautions import of_signs
from connector.report.glossary import BASELINES
from connector.report.numbers import counted, multiple, percent
from connector.report.opening import Findings, headline, more, relative_sigma
from connector.report.sections import data_determine, fit
from connector.report.verdict import verdict


def diagnosis(signs, certainty, calibrated=True):
    """Of ten neurons in one latent dimension, of which ``signs`` have a determined sign."""
    low = torch.full((10, 1), -1.0)
    low[:signs] = 0.5
    return Diagnosis(
        loadings=torch.zeros(10, 1), nu=low + 1, low=low, high=low + 2, certainty=torch.tensor(certainty).expand(10),
        level=0.95, determined_modes=2.54, predicted_error=0.06, calibrated=calibrated, estimand="mean", warnings=(),
        activation="tanh", has_bias=False,
    )  # fmt: skip


def spikes(**changes):
    metrics = {
        "lrrnn/val_loss": 12.0, "lrrnn/bits_per_spike": 0.0902, "lrrnn/bits_per_spike_prior": 0.0777,
        "lrrnn/bits_per_spike_standard": 0.0841, "lrrnn/bits_per_spike_null_drift_evidence_psth": 0.0712,
        "lrrnn/psth_r2_evidence": 0.556, "dynamics/field_error": 0.28,
        "dynamics/field_error_projected": 0.168, "connectivity/cell_types_p": 0.4,
    }  # fmt: skip
    values = {
        "kind": "spikes", "rank": 2, "n_neurons": 76, "n_trials": 664, "n_test": 133, "n_sampled": 1000, "sigma": 1.0,
        "spread": 37.0, "metrics": metrics, "baseline": "local", "other_baseline": "standard",
        "unprojected_error": 2.5, "diagnosis": diagnosis(8, 0.9, calibrated=False), "b_different": 0.079,
    }  # fmt: skip
    return Findings(**{**values, **changes})


def rates(**changes):
    metrics = {
        "lrrnn/val_loss": 1e-9, "dynamics/field_error": 0.01, "dynamics/field_error_projected": 0.003,
        "dynamics/field_error_finite_size": 0.048, "dynamics/attractors_kept": 0.95, "connectivity/cell_types_p": 0.01,
        "lrrnn/rates_r2": 0.99999, "lrrnn/rates_r2_pca": 0.92,
    }  # fmt: skip
    values = {
        "kind": "rates", "rank": 2, "n_neurons": 1000, "n_trials": 400, "n_test": 80, "n_sampled": 1000, "sigma": 1.0,
        "spread": 2.17, "metrics": metrics, "n_networks": 20, "unprojected_error": 0.2, "drawn_from_teacher": 0.18,
        "diagnosis": diagnosis(10, 0.99), "odd": True,
    }  # fmt: skip
    return Findings(**{**values, **changes})


@pytest.mark.parametrize(
    "found",
    [
        spikes(), rates(), rates(diagnosis=None), rates(given=True, metrics={"dynamics/field_error": 0.02}),
        spikes(metrics={}, b_different=None, baseline=None, other_baseline=None),
        spikes(metrics={"lrrnn/bits_per_spike": -0.01}), rates(metrics={"lrrnn/rates_r2_pca": 0.04, "lrrnn/rates_r2_null": 0.04}),
        # where most is to be said
        spikes(diagnosis=replace(diagnosis(8, 0.3, calibrated=False), warnings=("It is off.",)), attractors={NOTHING: 0.6, "1 stable fixed point": 0.4}),
        rates(given=True, diagnosis=diagnosis(0, 0.3), attractors={"2 stable fixed points": 0.93, "1 stable fixed point": 0.07}),
    ],
)  # fmt: skip
def test_three_to_six_points_in_sentences_of_thirty_words_at_most(found):
    said = verdict(found, [])
    assert 3 <= len(said.lines) <= 6
    for text in [*(told for _, told in said.lines), *said.more]:
        assert re.fullmatch(r"([A-Z]|nu |sigma ).*\.", text)
        assert "nan" not in text.lower()
        for sentence in re.split(r"(?<=\.)\s+", text):
            assert len(re.findall(r"\S*\w\S*", sentence)) <= 30, sentence


def test_the_verdict_is_as_good_as_the_worst_caution_and_says_so_in_words():
    caution, warning = "Caution: It is open. What to do: wait.", "Warning: It is wrong. What to do: mend it."
    levels = {(): "good", (caution,): "caution", (caution, warning): "warning"}
    for given, level in levels.items():
        said = verdict(rates(), given)
        assert said.level == level
        assert (said.lines[-1][1].startswith("No check")) is (not given)
    assert [part.word for part in verdict(rates(), (caution, warning)).cautions] == ["Warning", "Caution"]
    assert "the warning and the caution below" in verdict(rates(), (caution, warning)).lines[-1][1]
    assert verdict(rates(), (caution, caution)).lines[-1][1].startswith("Read the 2 cautions below: they")
    nothing = rates(metrics={"lrrnn/rates_r2": 0.05, "lrrnn/rates_r2_pca": 0.045, "lrrnn/rates_r2_null": 0.041})
    assert verdict(nothing, [warning]).level == "none"
    assert len({said.word for said in (verdict(rates(), given) for given in levels)}) == 3


def opening(found):
    """All that is said before the figures."""
    return [*(sentence for _, sentence in headline(found)), *more(found)]


def test_a_recording_of_spikes_is_told_with_its_numbers_and_limits():
    text = " ".join(opening(spikes()))
    for part in (
        "spikes of 76 neurons predicts 133 test trials 0.090 bits per spike better than each neuron's mean rate",
        "gains 0.019 over mean responses by evidence (0.071)", "From the inputs alone the fit predicts spikes 0.078 bits",
        "local baseline", BASELINES["local"], "With the standard baseline instead, the fit predicts spikes 0.084 bits per spike better",
        "R² of 0.56", "poorly, with an error of 28 %", "at sigma = 1 misses the vector field by 2.5 times its size (infinitely many neurons: 28 %)", "reduces the error to 17 %",
        "about 2.5 independent weighted sums", "80 % (nu_1)", "though not independently", "coverage of the intervals behind this has not been measured",
        "look like one Gaussian or Student-t population (p = 0.4)", "do not support the input weights b", "7.9 %",
        "2.7 % of the spread of nu",
    ):  # fmt: skip
        assert part in text, part


NULL = "lrrnn/bits_per_spike_null_drift"


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        # as an older run has it, without standard errors; and a run that has them
        ({f"{NULL}_evidence_psth": None, f"{NULL}_psth": 0.0703, NULL: 0.03, "lrrnn/bits_per_spike": 0.0711},
         ["Beyond drift and mean responses (0.070) it gains nothing (0.0008)"]),
        ({NULL: None, f"{NULL}_evidence_psth": None, f"{NULL}_psth": 0.0703, "lrrnn/bits_per_spike": 0.0711},
         ["Beyond mean responses (0.070) it gains nothing"]),  # no times, no drift
        ({"lrrnn/bits_per_spike_gain": 0.019, "lrrnn/bits_per_spike_gain_error": 0.002}, ["gains 0.019 ± 0.002 over"]),
        ({"lrrnn/bits_per_spike_gain": 0.003, "lrrnn/bits_per_spike_gain_error": 0.002}, ["gains nothing (0.003 ± 0.002"]),
        ({f"{NULL}_psth": 0.08}, ["over drift and mean responses (0.080)"]),  # the best of the nulls
        ({NULL: None, f"{NULL}_psth": None, f"{NULL}_evidence_psth": -0.01, "lrrnn/bits_per_spike": 0.0}, ["Beyond that it gains nothing"]),
    ],
)  # fmt: skip
def test_in_short_says_what_is_gained_over_the_best_null(metrics, words):
    metrics = {**spikes().metrics, NULL: 0.03, f"{NULL}_psth": 0.04, **metrics}
    said = " ".join(opening(spikes(metrics={key: value for key, value in metrics.items() if value is not None})))
    assert all(part in said for part in words), said


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (
            spikes,
            {
                "lrrnn/bits_per_spike": 0.003,
                "lrrnn/bits_per_spike_gain_error": 0.002,
                "lrrnn/bits_per_spike_prior": -0.002,
            },
        ),
        (rates, {"lrrnn/rates_r2": 0.05, "lrrnn/rates_r2_pca": 0.045, "lrrnn/rates_r2_null": 0.041}),
    ],
)
def test_nothing_is_told_of_connectivity_where_nothing_was_found(found, why):
    found = found()
    assert nulls.nothing_found(found.metrics) is None
    as_mean_responses = {**found.metrics, f"{NULL}_psth": 0.2, f"{NULL}_evidence_psth": 0.2}
    assert nulls.nothing_found(as_mean_responses) is None  # which latent states may well make
    found = replace(found, metrics={**found.metrics, **why})
    said = " ".join(opening(found))
    assert said.count(nulls.NO_FINDING) == 1
    assert not re.search(r"its sign|weighted sums|population|the vector field", said), said
    assert data_determine(found).startswith("Caution: ")
    assert sum(nulls.NO_FINDING in sign for sign in of_signs(found.metrics)) == 1


def test_a_model_worse_than_mean_rates_is_called_worse():
    metrics = {**spikes().metrics, "lrrnn/bits_per_spike": -0.021}
    said = opening(spikes(metrics=metrics))[0]
    assert "0.021 bits per spike worse than each neuron's mean rate" in said


def test_what_is_no_error_of_the_connectivity_or_hangs_on_the_fit_is_told():
    assert "noise" not in " ".join(opening(rates()))  # a simulated network's field has none
    assert "whatever noise the states have" in " ".join(opening(rates(drawn_from_teacher=None)))


def test_the_error_of_a_field_that_was_sampled_is_not_taken_for_its_distance_from_the_truth():
    noisy = rates(drawn_from_teacher=None, metrics={**rates().metrics, "lrrnn/process_noise": 0.1})
    for found in (spikes(), noisy):
        text = " ".join(opening(found))
        assert "reproduces the estimated vector field" in text
        assert "excludes the estimate's own error" in text
    assert "estimate" not in headline(rates())[1][1]  # compared with the true network


def test_groups_are_told_by_grade():
    def told(kind=rates, **more):
        metrics = {**kind().metrics, **{f"connectivity/{name}": value for name, value in more.items()}}
        return " ".join(opening(kind(metrics=metrics)))

    shown = told(groups_p=0.01, groups=3, groups_stability=0.9)
    assert "form 3 groups with gaps between them (p = 0.01). As many show in 90 % of half-samples" in shown
    assert "densest at its ends, can look the same" in shown
    assert "if the fitted loadings are right" not in shown
    assert "if the fitted loadings are right" in told(spikes, groups_p=0.01, groups=2)
    hidden = told(groups_p=0.4, groups=1, cell_types_p=0.01)
    assert "are not shown (p = 0.4). The loadings are not one Gaussian or Student-t population" in hidden
    assert "no evidence for cell types" in hidden
    assert "8 of 10 cases if 4.9 sd or more apart" in told(groups_p=0.4, groups=1, groups_detectable=4.88)


def test_signs_of_misfit_qualify_what_is_supported():
    warned = replace(diagnosis(8, 0.9), warnings=("Trajectories miss the samples.",))
    assert "cautions about nu below" in " ".join(opening(rates(diagnosis=warned)))
    assert "cautions about nu" not in " ".join(opening(rates()))


def test_signs_that_no_neuron_has_are_said_in_words():
    open_everywhere = diagnosis(0, 0.1)
    assert "its sign is determined for none of the sampled neurons" in " ".join(
        opening(rates(diagnosis=open_everywhere))
    )
    assert "determine its sign for no neuron" in " ".join(open_everywhere.sentences())
    two = replace(open_everywhere, low=torch.tensor([[0.5, -1.0]]).expand(10, 2), high=torch.ones(10, 2))
    assert two.signs == "100 % (nu_1) and none (nu_2)"
    assert "for 100 % (nu_1) and none (nu_2) of the sampled neurons" in " ".join(opening(rates(diagnosis=two)))
    said = repr(two)
    assert "2.5 weighted sums" in said
    assert "100 % (nu_1)" in said
    assert "95 % intervals" in said
    assert len(said) < 250


def test_a_baseline_other_than_the_one_asked_for_is_told():
    assert "its mean rate" in " ".join(opening(spikes(baseline="constant")))
    assert "asks for" not in fit(spikes())
    assert "which needs the times of trials" in fit(
        spikes(baseline="standard", other_baseline=None, baseline_missing=True)
    )


def test_what_the_data_leave_open_is_a_caution_but_no_misfit():
    loose = replace(diagnosis(8, 0.3), predicted_error=0.5859)
    assert "cautions about nu" not in " ".join(opening(rates(diagnosis=loose)))
    assert len(loose.cautions) == 1
    # One number, one rounding, wherever it stands.
    for text in (loose.cautions[0], loose.sentences()[1]):
        assert re.search(r"expects a squared error of nu of 0\.59 times the mean square", text)
    assert "data.alpha" in loose.cautions[0]
    assert diagnosis(8, 0.9).cautions == ()
    assert "did not converge" in " ".join(opening(rates(diagnosis=replace(loose, converged=False))))


def test_counted():
    assert [counted(number, "input") for number in (0, 1, 2)] == ["0 inputs", "1 input", "2 inputs"]


def test_a_simulated_recording_is_told_with_its_truth():
    text = " ".join(opening(rates()))
    for part in (
        "more than 99.9 % of their variance in 80 test trials; principal components of the same rank explain 92 %",
        "closely, with an error of 1 % of its size", "at sigma = 1 misses the vector field by 20 % of its size", "from the true distribution misses its own field by 18 %",
        "19 of 20 projected networks",
        "are not one Gaussian or Student-t population", "p = 0.01", "no evidence for cell types", "46 % of the spread", "even part of nu, which affects the dynamics only if neurons are silenced",
    ):  # fmt: skip
        assert part in text, part
    for absent in ("coverage has not been measured", "input weights", "bits per spike", "baseline"):
        assert absent not in text


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.05, "do not support"),
        (0.19, "do not support"),
        (0.5, "in part"),
        (0.9, "The data support the input weights b:"),
    ],
)
def test_input_weights_are_judged_by_how_many_differ_from_zero(share, words):
    assert words in " ".join(opening(spikes(b_different=share)))


@pytest.mark.parametrize(("certainty", "said"), [(0.4, True), (0.6, False)])
def test_neurons_left_open_are_named_only_where_there_are_some(certainty, said):
    assert ("the size of nu for" in " ".join(opening(rates(diagnosis=diagnosis(10, certainty))))) is said


@pytest.mark.parametrize(
    ("sigma", "spread", "words"),
    [(1.0, 40.0, "2.5 % of the spread of nu over neurons (40). By this choice samples hardly differ"), (1.0, 2.0, "50 %"), (1.0, 2.0, "blurs"),
     (1.0, 1.0, "as much as nu"), (1.0, 0.0, "nu is the same for all neurons")],
)  # fmt: skip
def test_sigma_is_put_beside_the_spread_of_nu(sigma, spread, words):
    said = relative_sigma(sigma, spread)
    assert words in said
    assert said.startswith("sigma = 1 is a choice")


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100 %"), (0.995, "99.5 %"), (0.9996, "more than 99.9 %"), (0.99999, "more than 99.9 %"), (1.004, "just over 100 %"),
     (-0.07, "-7 %"), (-0.0, "0 %"), (-0.998, "-100 %"), (0.0994, "9.9 %"), (0.0, "0 %"), (1e-5, "less than 0.1 %"), (0.076, "7.6 %"),
     (0.644, "64 %"), (2.48, "248 %")],
)  # fmt: skip
def test_percent(share, text):
    assert percent(share) == text


@pytest.mark.parametrize(("share", "text"), [(0.28, "28 % of"), (1.5, "150 % of"), (47.72, "48 times"), (2, "2 times")])
def test_errors_above_twice_the_size_are_factors(share, text):
    assert multiple(share) == text


def test_number_of_attractors_is_told_with_its_probability():
    sure, open_ = (
        {"2 stable fixed points": 0.93, "1 stable fixed point": 0.07},
        {"2 stable fixed points": 0.6, "3": 0.4},
    )
    said = " ".join(opening(rates(attractors=sure)))
    assert "has 2 stable fixed points (probability 0.93; 1 stable fixed point: 0.07; inputs at zero)" in said
    assert "cannot tell" not in said
    assert "cannot tell how many attractors" in " ".join(opening(rates(attractors=open_)))
    assert "probability" not in " ".join(opening(rates()))


def test_in_short_says_how_inputs_enter_where_equation_1_has_them_otherwise():
    for kind, words in (("filtered", "pass the neurons' time constant"), ("both", "at once and through")):
        assert words in " ".join(opening(spikes(input_kind=kind)))
    assert "In this model the inputs" not in " ".join(opening(spikes()))
