"""The loss in the training frameworks that people use around PyTorch."""

import copy

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from conftest import Fusion, draw_images, make_criterion


def network():
    torch.manual_seed(0)
    return Fusion()


@pytest.fixture
def data():
    return DataLoader(TensorDataset(*draw_images(batch=4)[1:]), batch_size=2)


# Lightning remarks on settings of ours that are right for a test: few workers, no logger, ...
@pytest.mark.filterwarnings("ignore")
def test_lightning_fits_saves_and_resumes(encoder, data, tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self, criterion, rate=1e-2):
            super().__init__()
            self.save_hyperparameters(ignore=["criterion"])
            self.network = network()
            self.criterion = criterion

        def training_step(self, batch, _):
            torch.manual_seed(self.global_step)
            visible, infrared = batch
            fused = self.network(visible, infrared)
            terms = self.criterion.terms(fused=fused, visible=visible, infrared=infrared)
            self.log_dict(terms._asdict())
            return terms.total

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), self.hparams.rate)

    def fit(module, epochs, checkpoint=None):
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            default_root_dir=tmp_path,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        return trainer

    criterion = make_criterion(encoder, generator=None)
    whole, first, second = (Module(copy.deepcopy(criterion)) for _ in range(3))
    assert fit(whole, 3).callback_metrics["total"].isfinite()
    checkpoint = tmp_path / "first.ckpt"
    fit(first, 1).save_checkpoint(checkpoint)
    assert checkpoint.stat().st_size < 50_000
    content = torch.load(checkpoint, weights_only=True)
    assert list(content["state_dict"]) == list(Module(None).state_dict())
    fit(second, 3, checkpoint)
    for name, value in whole.network.state_dict().items():
        torch.testing.assert_close(second.network.state_dict()[name], value)
        assert not torch.equal(first.network.state_dict()[name], value)
    loaded = Module.load_from_checkpoint(checkpoint, criterion=criterion, weights_only=True)
    assert loaded.hparams == {"rate": 1e-2}
    assert not criterion.encoder.network.training


@pytest.mark.filterwarnings("ignore")
def test_accelerate_prepares_it(encoder, data, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model, plain, reference = network(), network(), make_criterion(encoder)
    model, loader, criterion = accelerator.prepare(model, data, make_criterion(encoder))
    for (visible, infrared), batch in zip(loader, data, strict=True):
        fused = model(visible, infrared)
        loss = criterion(fused=fused, visible=visible, infrared=infrared)
        accelerator.backward(loss)
        expected = reference(fused=plain(*batch), visible=batch[0], infrared=batch[1])
        expected.backward()
        torch.testing.assert_close(loss, expected)
        for a, b in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
    assert accelerator.unwrap_model(criterion).state_dict() == {}
    accelerator.save_model(model, tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}
