"""Train the bundled CLIP from nothing to the folder that the package ships.

    cd docs && python -m tiny_clip.train

renders the scenes, trains, and writes `open_clip_config.json`, `open_clip_model.safetensors` and
`vocabulary.txt`, in about ten minutes.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import trange

from . import losses
from .captions import build_captions, truth
from .data import Batch, SceneBank, Variant, draw_batch, make_bank
from .degradations import ARTEFACTS, add_relief, odd_part
from .model import Config, Texts, build_model, encode_images, export

_ASSETS = Path(__file__).parents[2] / "clip_fusion_loss" / "assets" / "tiny_clip"
_RELIEF = 5  # side of the filters searched for relief, in pixels
# The fusions that compete under an objective.
_RANKED = [Variant.FUSED, Variant.AVERAGE, Variant.ARTEFACT, Variant.SPOILT]


class Trainer:
    """Model, average of the model, optimiser and step counter."""

    def __init__(self, config: Config, bank: SceneBank) -> None:
        self.config, self.bank, self.step = config, bank, 0
        self.texts = Texts(build_captions(), config.context)
        torch.manual_seed(config.seed)
        self.model = build_model(config, self.texts)
        self.average = build_model(config, self.texts).requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for parameter in self.model.parameters():
            groups[parameter.ndim > 1].append(parameter)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": groups[True], "weight_decay": config.weight_decay},
                {"params": groups[False], "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
        )

    def run(self) -> dict[str, float]:
        """All steps; returns the terms of the last."""
        terms = {}
        bar = trange(self.config.steps, desc="train", unit="step")
        for step in bar:
            self.step = step
            terms = self._one_step()
            if step % 20 == 0:
                bar.set_postfix({name: f"{value:.2f}" for name, value in terms.items()})
        return terms

    def _one_step(self) -> dict[str, float]:
        config = self.config
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        batch = draw_batch(self.bank, config.batch, config.image_size, generator)
        chosen = torch.randint(len(self.texts), (config.captions,), generator=generator)
        if torch.rand((), generator=generator) < config.embossed:
            self._emboss_in_disguise(batch, generator)
        perturb = torch.rand((), generator=generator) < config.perturbed
        self._prepare(self.step)

        images = self._attack(batch, chosen) if perturb else batch.images
        self.optimizer.zero_grad(set_to_none=True)
        terms = self._terms(images, batch, chosen)
        total = torch.stack(list(terms.values())).sum()
        total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(60))
        self._update_average()
        return {"total": total.item(), **{name: term.item() for name, term in terms.items()}}

    def _prepare(self, step: int) -> None:
        """Modes and learning rate for this step."""
        self.model.train()
        if step >= 0.8 * self.config.steps:  # from here on, train what will be shipped
            for module in self.model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * _schedule(step, self.config.steps)

    def _emboss_in_disguise(self, batch: Batch, generator: torch.Generator) -> None:
        """Replace half of the artefacts by the relief that this very model likes best.

        A fusion network is a stack of filters, so what it exploits is a filter. The gradient of
        the direction loss with respect to a filter of the fused image shows which. Only its odd
        part is taken: an odd filter embosses, whereas an even one may well sharpen, which would
        make "artefact" a false label.
        """
        count = len(batch.images) // 2
        sources = batch.images[:count, : Variant.FUSED]
        fused = batch.images[:count, Variant.FUSED, None].clone()
        kernels = torch.zeros(count, 1, _RELIEF, _RELIEF, requires_grad=True)
        padded = F.pad(fused, (_RELIEF // 2,) * 4, mode="reflect").transpose(0, 1)
        filtered = fused + F.conv2d(padded, kernels, groups=count).transpose(0, 1)
        vectors = _unit(encode_images(self.average.eval(), torch.cat([sources, filtered], 1)))
        with torch.no_grad():
            rows = torch.cat([self.texts.objectives[:1], self.texts.modalities])
            texts = _unit(self.average.encode_text(self.texts.tokens[rows]))
        loss = losses.direction_losses(vectors[:, 2:], vectors[:, :2], texts[:1], texts[1:])
        (gradient,) = torch.autograd.grad(loss.sum(), kernels)

        worst = odd_part(-gradient)
        worst = worst / worst.abs().amax((-1, -2), keepdim=True).clamp(min=1e-12)
        amounts = 0.03 + 0.12 * torch.rand(count, 1, 1, 1, generator=generator)
        relief = add_relief(fused, worst, amounts).clamp(0, 1)
        batch.images[:count, Variant.ARTEFACT] = relief[:, 0]
        leads_here = batch.end[:count] == Variant.ARTEFACT
        halfway = (fused + relief)[leads_here, 0] / 2
        batch.images[:count][leads_here, Variant.BETWEEN] = halfway
        batch.possible[:count, Variant.ARTEFACT] = ARTEFACTS["emboss"].describe(
            batch.possible[:count, Variant.FUSED]
        )

    def _attack(self, batch: Batch, chosen: Tensor) -> Tensor:
        """The images moved one small step against the losses, as a fusion network would."""
        images = batch.images.clone().requires_grad_()
        total = torch.stack(list(self._terms(images, batch, chosen).values())).sum()
        (gradient,) = torch.autograd.grad(total, images)
        return (images + self.config.perturbation * gradient.sign()).clamp(0, 1).detach()

    def _terms(self, images: Tensor, batch: Batch, chosen: Tensor) -> dict[str, Tensor]:
        """The weighted terms of the training loss; `images` may differ slightly from the batch's.

        `chosen` are the rows of the captions in the contrastive term.
        """
        texts, config = self.texts, self.config
        rows = [texts.prompts, texts.objectives, texts.modalities, chosen]
        vectors = _unit(encode_images(self.model, images))
        with torch.autocast("cpu", torch.bfloat16):
            text_vectors = self.model.encode_text(texts.tokens[torch.cat(rows)])
        prompts, objectives, modalities, captions = _unit(text_vectors).split(
            [len(part) for part in rows]
        )
        scale = self.model.logit_scale.exp()
        flat, possible = vectors.flatten(0, 1), batch.possible.flatten(0, 1)
        everyone = torch.arange(len(images))
        before, after = prompts[texts.quality_steps[batch.quality_loss]].unbind(1)
        return {
            "contrastive": losses.contrastive(
                flat, captions, *truth(possible, texts.allowed[chosen]), scale
            ),
            "prompts": 0.5
            * losses.prompt_cross_entropy(flat, prompts, possible, scale, config.modality_weight),
            "modality": losses.step_along(
                vectors[:, Variant.VISIBLE_LOOK], vectors[:, Variant.INFRARED_LOOK], *modalities
            ),
            "quality": losses.step_along(
                vectors[everyone, batch.origin], vectors[:, Variant.DEGRADED], before, after
            ),
            **self._direction_terms(vectors, batch, objectives, modalities),
        }

    def _direction_terms(
        self, vectors: Tensor, batch: Batch, objectives: Tensor, modalities: Tensor
    ) -> dict[str, Tensor]:
        """The two terms on the direction loss itself, under every objective at once."""
        direction = losses.direction_losses(
            vectors, vectors[:, : Variant.FUSED], objectives, modalities
        )
        answers = truth(batch.possible.flatten(0, 1), self.texts.allowed[self.texts.objectives])
        true, false = (answer.view(direction.shape) for answer in answers)
        weights = torch.full((len(objectives),), self.config.objective_weight / len(objectives))
        weights[0] = self.config.paper_weight
        everyone = torch.arange(len(vectors))
        start, end = (everyone, batch.start), (everyone, batch.end)
        sign = (true[end] & false[start]).float() - (true[start] & false[end]).float()
        return {
            "ranking": losses.ranking(
                direction[:, _RANKED], true[:, _RANKED], false[:, _RANKED], weights, margin=0.35
            ),
            "between": losses.order_between(
                direction[start], direction[:, Variant.BETWEEN], direction[end], sign
            ),
        }

    @torch.no_grad()
    def _update_average(self) -> None:
        # A young average forgets faster, else it would remember the random start.
        keep = min(self.config.ema, (1 + self.step) / (10 + self.step))
        new_state = self.model.state_dict()
        for name, old in self.average.state_dict().items():
            new = new_state[name]
            if old.is_floating_point():
                old.lerp_(new, 1 - keep)
            else:
                old.copy_(new)


def _schedule(step: int, steps: int) -> float:
    """Factor on the learning rate: linear warm-up over 100 steps, then a half cosine to zero."""
    return min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors.float(), dim=-1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tiny_clip.train",
        description="Train the bundled CLIP.",
    )
    add = parser.add_argument
    add("--out", type=Path, default=_ASSETS, help="folder for the weights (default: %(default)s)")
    add("--pairs", type=Path, help="also crops of DIR/vi/NAME, DIR/ir/NAME; mind their licence")
    add("--skip", action="append", default=[], metavar="NAME", help="pair to leave out; repeatable")
    add("--steps", type=int, default=Config.steps, help="default: %(default)s")
    add("--scenes", type=int, default=2000, help="to render (default: %(default)s)")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bank = make_bank(
        arguments.scenes,
        arguments.seed,
        workers=os.cpu_count() or 1,
        pairs=arguments.pairs,
        skip=arguments.skip,
    )
    config = Config(steps=arguments.steps, seed=arguments.seed)
    trainer = Trainer(config, bank)
    trainer.run()
    export(trainer.average, config, build_captions(), arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
