"""What figures show of a run: each trial once, and under the number that it has in files; what they share is made once."""

from types import SimpleNamespace

import pytest
import torch
from draws import normal

from connector.data.folds import Fold
from connector.lrrnn.handover import FittedDynamics
from connector.stages import drawing
from connector.stages.results import Results
from connector.types import Latents, Loadings


@pytest.mark.parametrize(("n_test", "shown"), [(1, [4]), (2, [4, 5]), (3, [4, 5, 6]), (9, [4, 6, 9, 12])])
def test_rates_show_each_trial_once_and_as_files_number_it(n_test, shown):
    z, m = normal(13, 15, 2), normal(5, 2, seed=1)
    part = Fold(torch.arange(3), torch.tensor([3]), torch.arange(4, 4 + n_test))
    inputs = FittedDynamics(Latents(z, torch.full((13,), 15), 0.1), Loadings(m), part, "tanh")
    data = SimpleNamespace(recording=SimpleNamespace(activity=torch.tanh(z @ m.T)), teacher=None)
    figure = drawing.rates(SimpleNamespace(inputs=inputs, data=data))[1]
    titles = [axis.get_title(loc="left") or axis.get_title() for axis in figure.axes]
    assert [title for title in titles if title] == [f"trial {trial}" for trial in shown]
    labels = {axis.get_ylabel().splitlines()[0] for axis in figure.axes if axis.get_ylabel()}
    assert labels <= {f"neuron {i}" for i in range(5)}


def test_measures_and_figures_share_the_networks_that_they_draw():
    drawn = []
    distribution = SimpleNamespace(sample=lambda n, sigma, seed: drawn.append(seed) or f"network {seed}")
    results = SimpleNamespace(distribution=distribution, sigma=1.0, options=SimpleNamespace(seed=7), _at_sigma={})
    asked = [Results.drawn_at_sigma(results, seed) for seed in (None, 1000, 7, 1000, None)]
    assert asked == ["network 7", "network 1000", "network 7", "network 1000", "network 7"]
    assert drawn == [7, 1000]
