"""The loss in the training frameworks that people use around PyTorch."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from conftest import draw_images, make_criterion


def network():
    torch.manual_seed(0)
    return nn.Conv2d(2, 1, 3, padding=1)


def fuse(network, visible, infrared):
    return network(torch.cat([visible, infrared], 1)).sigmoid()


@pytest.fixture
def data():
    return DataLoader(TensorDataset(*draw_images(batch=4)[1:]), batch_size=2)


# Lightning remarks on settings of ours that are right for a test: few workers, no logger, ...
@pytest.mark.filterwarnings("ignore")
class TestLightning:
    @pytest.fixture
    def lightning(self):
        return pytest.importorskip("lightning")

    def make(self, lightning, encoder):
        class Module(lightning.LightningModule):
            def __init__(self, criterion):
                super().__init__()
                self.network = network()
                self.criterion = criterion

            def training_step(self, batch, _):
                torch.manual_seed(self.global_step)
                terms = self.criterion.terms(fuse(self.network, *batch), *batch)
                self.log_dict(terms._asdict())
                return terms.total

            def configure_optimizers(self):
                return torch.optim.Adam(self.parameters(), 1e-2)

        return Module(make_criterion(encoder, generator=None))

    def fit(self, lightning, module, data, folder, epochs, checkpoint=None):
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        return trainer

    def test_fit_checkpoint_and_resume(self, lightning, encoder, data, tmp_path):
        whole = self.make(lightning, encoder)
        start = copy.deepcopy(whole.network.state_dict())
        trainer = self.fit(lightning, whole, data, tmp_path / "whole", 3)
        assert trainer.callback_metrics["total"].isfinite()
        assert any(not torch.equal(start[k], v) for k, v in whole.network.state_dict().items())

        first = self.make(lightning, encoder)
        trainer = self.fit(lightning, first, data, tmp_path / "half", 1)
        checkpoint = tmp_path / "first.ckpt"
        trainer.save_checkpoint(checkpoint)
        content = torch.load(checkpoint, weights_only=True)
        assert list(content["state_dict"]) == ["network.weight", "network.bias"]

        second = self.make(lightning, encoder)
        self.fit(lightning, second, data, tmp_path / "half", 3, checkpoint)
        for name, value in whole.network.state_dict().items():
            torch.testing.assert_close(second.network.state_dict()[name], value)
        assert next(encoder.network.parameters()).requires_grad is False
        assert not encoder.network.training

    @pytest.mark.parametrize("what", ["criterion", "encoder"])
    def test_as_a_hyperparameter_it_is_refused_with_the_remedy(
        self, lightning, encoder, data, tmp_path, what
    ):
        given = {"criterion": make_criterion(encoder), "encoder": encoder}[what]

        class Careless(lightning.LightningModule):
            def __init__(self, criterion, rate=1e-2):
                super().__init__()
                self.save_hyperparameters()

        with pytest.raises(TypeError, match=r"save_hyperparameters\(ignore=\['criterion'\]\)"):
            Careless(given)

    def test_the_remedy_gives_small_checkpoints_that_load(self, lightning, encoder, data, tmp_path):
        class Careful(lightning.LightningModule):
            def __init__(self, criterion, rate=1e-2):
                super().__init__()
                self.save_hyperparameters(ignore=["criterion"])
                self.network = network()
                self.criterion = criterion

            def training_step(self, batch, _):
                return self.criterion(fuse(self.network, *batch), *batch)

            def configure_optimizers(self):
                return torch.optim.Adam(self.parameters(), self.hparams.rate)

        criterion = make_criterion(encoder)
        trainer = self.fit(lightning, Careful(criterion), data, tmp_path, 1)
        path = tmp_path / "last.ckpt"
        trainer.save_checkpoint(path)
        assert path.stat().st_size < 50_000
        loaded = Careful.load_from_checkpoint(path, criterion=criterion, weights_only=True)
        assert loaded.hparams == {"rate": 1e-2}
        assert loaded.criterion is criterion


@pytest.mark.filterwarnings("ignore")
class TestAccelerate:
    def test_prepare(self, encoder, data, tmp_path):
        accelerate = pytest.importorskip("accelerate")
        accelerator = accelerate.Accelerator(cpu=True)
        criterion = make_criterion(encoder)
        model, plain = network(), network()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        model, optimizer, loader, criterion = accelerator.prepare(model, optimizer, data, criterion)
        reference = make_criterion(encoder)
        for (visible, infrared), batch in zip(loader, data, strict=True):
            loss = criterion(fuse(model, visible, infrared), visible, infrared)
            expected = reference(fuse(plain, *batch), *batch)
            torch.testing.assert_close(loss, expected)
            accelerator.backward(loss)
            expected.backward()
            for a, b in zip(model.parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(a.grad, b.grad)
            optimizer.zero_grad()
            plain.zero_grad()
        assert accelerator.unwrap_model(criterion).state_dict() == {}
        accelerator.save_model(model, tmp_path)
        assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}
