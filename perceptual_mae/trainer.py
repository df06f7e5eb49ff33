"""One optimiser step of a generator, with or without a discriminator, on any number of processes."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from discriminators import Discriminator, DiscriminatorOutput
from discriminators.ada_controller import sign_sums
from discriminators.penalties import path_noise
from perceptual_mae.adversary import Adversary, Look
from perceptual_mae.comparison import Comparison
from perceptual_mae.data.loading import Batch
from perceptual_mae.generator import MaskedAutoencoder, Reconstruction
from perceptual_mae.images import Pyramid, pyramid
from perceptual_mae.objective import Objective
from perceptual_mae.randomness import stream
from perceptual_mae.schedule import Moment

Scalars = dict[str, Tensor]
DrawMasks = Callable[[Batch, Moment], Tensor]
LearningRate = Callable[[int], float]


@dataclass
class View:
    """One micro-batch: images (B, C, H, W) in [0, 1] on the device; masks (B, L) and sample indices (B,) on the CPU."""

    images: Tensor
    mask: Tensor
    indices: Tensor
    reconstruction: Reconstruction | None = None
    signs: Tensor | None = None


class Trainer:
    """Updates generator and discriminator in turns; with `adversary` None the same step trains a plain MAE.

    The learning rates are functions of the step. `draw_masks(batch, moment)` returns the masks (B, L) of a
    micro-batch. All scalars that `step` returns are detached and stay on the device.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        generator: MaskedAutoencoder,
        objective: Objective,
        optimizer: Optimizer,
        learning_rate: LearningRate,
        draw_masks: DrawMasks,
        adversary: Adversary | None = None,
        *,
        clip_norm: float | None = None,
        ema_decay: float | None = None,
    ) -> None:
        self.accelerator, self.objective, self.draw_masks = accelerator, objective, draw_masks
        self.learning_rate, self.adversary, self.clip_norm = learning_rate, adversary, clip_norm
        self.bare_generator = generator.to(accelerator.device).train()
        average = get_ema_multi_avg_fn(ema_decay) if ema_decay else None  # type: ignore[no-untyped-call]
        self.ema = AveragedModel(generator, multi_avg_fn=average, use_buffers=False) if average else None
        self.generator, self.optimizer = accelerator.prepare(generator, optimizer)
        if adversary is not None:
            self.levels = cast(Discriminator, adversary.network).levels
            self.bare_discriminator = adversary.network.to(accelerator.device).train()
            self.discriminator, self.discriminator_optimizer = accelerator.prepare(
                adversary.network, adversary.optimizer
            )

    def step(self, batches: Sequence[Batch], moment: Moment) -> Scalars:
        """Update the discriminator, then the generator, once, on the same images under the same masks.

        `batches` are the micro-batches of this process; their gradients add up to those of one batch.
        """
        set_learning_rate(self.optimizer, self.learning_rate(moment.step))
        views = [self.view(batch, moment) for batch in batches]
        if len(views) == 1:
            # One forward serves both halves. Several micro-batches cannot keep all their graphs: they run it again.
            views[0].reconstruction = self.generator(views[0].images, views[0].mask)
        scalars: list[Scalars] = []
        if self.adversary is not None:
            set_learning_rate(self.discriminator_optimizer, self.adversary.learning_rate(moment.step))
            scalars.append(self.discriminator_half(views, moment))
        scalars.append(self.generator_half(views, moment))
        if self.adversary is not None and self.adversary.path_length is not None:
            scalars.append(self.path_half(views, moment))
        if self.ema is not None:
            self.ema.update_parameters(self.bare_generator)
        scalars.append(self.adapt(views))
        return {name: value for half in scalars for name, value in half.items()}

    def discriminator_half(self, views: Sequence[View], moment: Moment) -> Scalars:
        """Tell real from fake: the fake is detached, so nothing of this half reaches the generator."""
        adversary = self.adversary
        assert adversary is not None
        self.bare_discriminator.requires_grad_(True).train()
        r1 = adversary.r1 if adversary.r1 is not None and adversary.r1.is_due(moment.step) else None
        seen: list[Scalars] = []
        for view, finishing in self.in_turn(views, self.discriminator):
            with finishing:
                fake = self.levels_of(tuple(level.detach() for level in self.without_graph(view).pyramid))
                real, look = self.levels_of((view.images,)), adversary.look("real", view.indices, moment.step)
                leaves, seen_real = r1.watch(real, look) if r1 is not None else ((), look(real))
                on_real = self.discriminator(seen_real)
                on_fake = self.discriminator(adversary.look("fake", view.indices, moment.step)(fake))
                loss = adversary.loss(on_real.logits, on_fake.logits)
                judged_real = on_real.logits.flatten(1).mean(1)  # one number an image, whatever map the logits are
                penalty = {"penalty/r1": r1(judged_real, leaves)} if r1 is not None else {}
                self.accelerator.backward(sum(penalty.values(), loss) / len(views))
            scalars = {"discriminator/loss": loss, **penalty, **verdict(on_real, on_fake, adversary.center)}
            seen.append({name: value.detach() for name, value in scalars.items()})
            view.signs = sign_sums(judged_real, adversary.center)
        seen[-1] |= self.update("discriminator", self.discriminator_optimizer)
        return mean_of(seen)

    def generator_half(self, views: Sequence[View], moment: Moment) -> Scalars:
        """Reconstruct, look real, and match what the frozen discriminator sees in the original."""
        if self.adversary is not None:
            self.bare_discriminator.requires_grad_(False).eval()  # evaluation: spectral norms stand still too
        is_measured = self.objective.is_measured(moment.step)
        seen: list[Scalars] = []
        for view, finishing in self.in_turn(views, self.generator):
            with finishing:
                reconstruction = view.reconstruction or self.generator(view.images, view.mask)
                comparison = self.compare(reconstruction, view, moment)
                losses = self.objective(comparison, moment)
                if is_measured:
                    self.objective.measure(losses, comparison)
                self.accelerator.backward(losses.total / len(views))
            scalars = {"total": losses.total} | {f"raw/{name}": value for name, value in losses.raw.items()}
            scalars |= {f"weighted/{name}": value for name, value in losses.weighted.items()}
            if self.objective.balance.is_due(moment.step) and len(view.images) > 1:
                scalars["variety"] = variety(reconstruction.pyramid[0], view.images)
            seen.append({name: value.detach() for name, value in scalars.items()})
            view.reconstruction = None
        seen[-1] |= self.update("generator", self.optimizer, self.clip_norm)
        if is_measured:
            self.objective.balance.finish(lambda squares: self.accelerator.reduce(squares, reduction="sum"))
            seen[-1] |= {f"gradient_share/{name}": share for name, share in self.objective.shares(moment).items()}
        return mean_of(seen)

    def path_half(self, views: Sequence[View], moment: Moment) -> Scalars:
        """Keep steps of the decoder's input equally long in features: an update of its own, on half the images."""
        adversary = self.adversary
        assert adversary is not None
        penalty = adversary.path_length
        assert penalty is not None
        if not penalty.is_due(moment.step):
            return {}
        seen: list[Scalars] = []
        for view, finishing in self.in_turn(views, self.generator):
            half = slice(0, max(1, len(view.images) // 2))
            streams = [stream("path", adversary.seed, moment.step, index) for index in view.indices[half].tolist()]
            with finishing, sdpa_kernel(SDPBackend.MATH):  # the other attention kernels have no second derivative
                reconstruction = self.generator(view.images[half], view.mask[half])
                fake = self.levels_of(reconstruction.pyramid)
                features = self.bare_discriminator(fake).features if penalty.target == "features" else fake[:1]
                noise = path_noise([feature.shape[1:] for feature in features], streams)
                loss = penalty(features, reconstruction.latent, noise)
                # Levels that the penalty does not read need a gradient too, where processes wait for all of them.
                unread = 0 * torch.stack([level.sum() for level in reconstruction.pyramid]).sum()
                self.accelerator.backward((loss + unread) / len(views))
            seen.append({"penalty/path_length": loss.detach()})
        penalty.finish(lambda sums: self.accelerator.reduce(sums, reduction="sum"))
        seen[-1] |= {"path_length/mean": penalty.mean} | self.update("path_length", self.optimizer, self.clip_norm)
        return mean_of(seen)

    def adapt(self, views: Sequence[View]) -> Scalars:
        """Let the augmentation's probability follow how sure the discriminator was of real images, on all processes."""
        augmentation = self.adversary.augmentation if self.adversary is not None else None
        if augmentation is None:
            return {}
        num_images = sum(len(view.images) for view in views) * self.accelerator.num_processes
        signs = torch.stack([view.signs for view in views if view.signs is not None]).sum(0)
        sums = self.accelerator.reduce(signs, reduction="sum")
        augmentation.controller.observe(sums, num_images)
        told = {"augment/p": augmentation.p, "augment/r_t": augmentation.controller.r_t}
        return {name: sums.new_full((), value) for name, value in told.items() if not math.isnan(value)}

    def update(self, name: str, optimizer: Optimizer, clip_norm: float | None = None) -> Scalars:
        """Take an optimiser's step; in fp16 report whether the scaler skipped it, which is part of its work."""
        scaler, one = self.accelerator.scaler, torch.ones((), device=self.accelerator.device)
        told: Scalars = {}
        if clip_norm is not None:
            told[f"gradient_norm/{name}"] = self.accelerator.clip_grad_norm_(self.generator.parameters(), clip_norm)
        before = scaler.scale(one) if scaler is not None else one
        optimizer.step()
        optimizer.zero_grad()
        # The scale falls exactly when a step is skipped; asking the scaler for a number would wait for the device.
        if scaler is not None:
            told[f"skipped/{name}"] = (scaler.scale(one) < before).float()
        return told

    def compare(self, reconstruction: Reconstruction, view: View, moment: Moment) -> Comparison:
        """Set a reconstruction beside the original, seen by the bare, frozen discriminator (if there is one).

        Real and fake go through the same augmentation: features are compared place by place.
        """
        images, levels = view.images, len(reconstruction.pyramid)
        look: Look = self.adversary.look("pair", view.indices, moment.step) if self.adversary is not None else tuple
        return Comparison(
            reconstruction,
            real=lambda: pyramid(images, levels),
            target=lambda: self.bare_generator.target(images, levels),
            on_fake=lambda: self.bare_discriminator(look(self.levels_of(reconstruction.pyramid))),
            on_real=lambda: self.look_without_graph(images, look),
        )

    @torch.no_grad()
    def look_without_graph(self, images: Tensor, look: Look) -> DiscriminatorOutput:
        """Show real images to the discriminator; their features are targets and never differentiated."""
        output: DiscriminatorOutput = self.bare_discriminator(look(self.levels_of((images,))))
        return output

    def levels_of(self, images: Pyramid) -> Pyramid:
        """Return as many levels as the discriminator reads, pooling the full size where only that is given."""
        return images[: self.levels] if len(images) >= self.levels else pyramid(images[0], self.levels)

    def without_graph(self, view: View) -> Reconstruction:
        """Return the shared reconstruction, or a passing one where micro-batches run the generator per half."""
        if view.reconstruction is not None:
            return view.reconstruction
        with torch.no_grad():
            reconstruction: Reconstruction = self.bare_generator(view.images, view.mask)
        return reconstruction

    def view(self, batch: Batch, moment: Moment) -> View:
        """Move a micro-batch to the device, in the generator's precision, and draw its masks."""
        images = batch.to(self.accelerator.device).images.to(self.bare_generator.encoder.mean.dtype)
        return View(images, self.draw_masks(batch, moment), batch.indices)

    def in_turn(self, views: Sequence[View], network: nn.Module) -> Iterator[tuple[View, AbstractContextManager[None]]]:
        """Yield the micro-batches; processes exchange gradients in the last one only."""
        for view in views[:-1]:
            yield view, self.accelerator.no_sync(network)
        yield views[-1], nullcontext()


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


def mean_of(seen: Sequence[Scalars]) -> Scalars:
    """Average each scalar over the micro-batches that report it."""
    names = {name: None for scalars in seen for name in scalars}
    return {name: torch.stack([scalars[name] for scalars in seen if name in scalars]).mean() for name in names}


@torch.no_grad()
def verdict(on_real: DiscriminatorOutput, on_fake: DiscriminatorOutput, center: float) -> Scalars:
    """Return the mean logits and the share of images judged right, by each image's mean logit against `center`."""
    real, fake = (output.logits.float().flatten(1).mean(1) for output in (on_real, on_fake))
    right = torch.stack([(real > center).float().mean(), (fake < center).float().mean()])
    names = ("real", "fake", "accuracy_real", "accuracy_fake")
    values = (real.mean(), fake.mean(), *right)
    return {f"discriminator/{name}": value for name, value in zip(names, values, strict=True)}


@torch.no_grad()
def variety(fake: Tensor, real: Tensor) -> Tensor:
    """Return how much reconstructions (B, C, H, W) differ from image to image, relative to the originals (about 1)."""
    return fake.std(0).mean() / real.std(0).mean().clamp_min(1e-6)
