"""A flow under a Trainer of the user's own: fit, validate, test, predict and read back, from one tensor."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from connector.connectivity.networks import NETWORKS
from connector.data.modules import TensorDataModule
from connector.stages.flows import FlowModule

MEAN, ROOT = torch.tensor([1.0, -2.0]), torch.tensor([[1.0, 0.0], [1.5, 0.5]])


def rows(n=600, seed=0):
    return MEAN + torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)) @ ROOT.T


def trainer(directory, epochs=3, **options):
    return pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=directory, log_every_n_steps=1, **options,
    )  # fmt: skip


@pytest.mark.parametrize("network", NETWORKS)
def test_a_flow_trains_on_one_tensor_and_comes_back_from_its_checkpoint(tmp_path, network):
    module = FlowModule("loadings", {"dim": 2, "hidden_width": 16, "network": network}, seed=3)
    data, own = TensorDataModule(rows(), batch_size=128, seed=3), trainer(tmp_path, epochs=8)
    own.fit(module, datamodule=data)
    torch.testing.assert_close(module.flow.location, data.train[0].mean(0))
    (validated,) = own.validate(module, datamodule=data, verbose=False)
    (tested,) = own.test(module, datamodule=data, verbose=False)
    assert validated["loadings/val_loss"] == pytest.approx(tested["loadings/test_loss"])
    truth = torch.distributions.MultivariateNormal(MEAN, ROOT @ ROOT.T)
    expected = float(truth.log_prob(data.validation[0]).mean())
    assert tested["loadings/test_log_likelihood"] == pytest.approx(expected, abs=0.3)
    densities = torch.cat(own.predict(module, datamodule=data))
    torch.testing.assert_close(densities, module.flow.log_prob(rows()), rtol=1e-4, atol=1e-4)
    again = FlowModule.load_from_checkpoint(own.checkpoint_callback.best_model_path, weights_only=True)
    assert again.hparams.flow["network"] == network
    for one, other in zip(module.state_dict().values(), again.state_dict().values()):
        assert torch.equal(one, other)
    assert again.flow.sample(3, generator=torch.Generator().manual_seed(0)).isfinite().all()


def test_a_flow_with_context_trains_on_pairs_and_without_an_end(tmp_path):
    x = rows()
    module = FlowModule("outputs", {"dim": 1, "context_dim": 1, "hidden_width": 8}, noise_std=0.1)
    data = TensorDataModule((x[:, 1:], x[:, :1]), None, batch_size=200)
    own = trainer(tmp_path, epochs=-1, max_steps=4)
    own.fit(module, datamodule=data)
    assert own.global_step == 4
    assert torch.cat(own.predict(module, datamodule=data)).shape == (600,)


def test_batches_of_another_loader_train_a_flow_whose_scale_is_set(tmp_path):
    x = rows()
    module = FlowModule("loadings", {"dim": 2, "hidden_width": 8})
    module.flow.fit_scaler(x)
    location = module.flow.location.clone()
    own = trainer(tmp_path, epochs=1)
    own.fit(module, DataLoader(x, batch_size=100), DataLoader(x, batch_size=100))
    assert torch.equal(module.flow.location, location)
    assert torch.cat(own.predict(module, DataLoader(x, batch_size=100))).shape == (600,)
