"""One optimiser step of a generator, with or without a discriminator, on any number of processes."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from discriminators import Discriminator, DiscriminatorOutput
from discriminators.augmentation.controller import sign_sums
from discriminators.penalties import R1, path_noise
from perceptual_mae.data.loading import Batch
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder, Reconstruction
from perceptual_mae.images import Pyramid, pyramid
from perceptual_mae.loss_networks import LossNetworks
from perceptual_mae.objective.objective import Objective
from perceptual_mae.objective.term_inputs import TermInputs
from perceptual_mae.schedules import TrainingProgress, set_learning_rate
from perceptual_mae.seeding import stream
from perceptual_mae.training.adversary import Adversary, Look
from perceptual_mae.training.gradients import push
from perceptual_mae.training.scalars import Scalars, mean_of, variety, verdict

DrawMasks = Callable[[Batch, TrainingProgress], Tensor]
DrawPaths = Callable[[Batch], Tensor | None]
LearningRate = Callable[[int], float]
Order = Literal["lean", "sequential"]
"""Both gradients at the same discriminator, or the discriminator's update first."""


@dataclass
class View:
    """One micro-batch: images (B, C, H, W) in [0, 1] on the device; what else is known of them on the CPU.

    That is masks (B, L), sample indices (B,) and, where branches are closed, drop_path_masks (B, blocks, 2).
    """

    images: Tensor
    mask: Tensor
    indices: Tensor
    drop_path_masks: Tensor | None = None
    reconstruction: Reconstruction | None = None
    signs: Tensor | None = None


class Trainer:
    """Updates generator and discriminator in turns; with `adversary` None the same step trains a plain MAE.

    The learning rates are functions of the step. `draw_masks(batch, progress)` returns the masks (B, L) of a
    micro-batch, `draw_drop_path_masks(batch)` its drop_path_masks through the encoder (None: all open). `networks`
    are those that terms compare through beside the live discriminator. All scalars that `step` returns are detached and
    stay on the device.
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
        networks: LossNetworks | None = None,
        draw_drop_path_masks: DrawPaths = lambda batch: None,
        *,
        order: Order,
        clip_norm: float | None = None,
        ema_decay: float | None = None,
    ) -> None:
        self.accelerator, self.objective = accelerator, objective
        self.draw_masks, self.draw_drop_path_masks = draw_masks, draw_drop_path_masks
        if order not in get_args(Order):
            raise ValueError(f"unknown order {order!r} of a step; choose from: {', '.join(get_args(Order))}")
        self.learning_rate, self.adversary, self.order, self.clip_norm = learning_rate, adversary, order, clip_norm
        self.networks = (networks or LossNetworks()).to(accelerator.device)
        self.unwrapped_generator = generator.to(accelerator.device).train()
        average = get_ema_multi_avg_fn(ema_decay) if ema_decay else None  # type: ignore[no-untyped-call]
        self.ema = AveragedModel(generator, multi_avg_fn=average, use_buffers=False) if average else None
        self.generator, self.optimizer = accelerator.prepare(generator, optimizer)
        if adversary is not None:
            self.levels = cast(Discriminator, adversary.network).levels
            self.unwrapped_discriminator = adversary.network.to(accelerator.device).train()
            self.discriminator, self.discriminator_optimizer = accelerator.prepare(
                adversary.network, adversary.optimizer
            )

    def step(self, batches: Sequence[Batch], progress: TrainingProgress) -> Scalars:
        """Update discriminator and generator once, on the same images under the same masks.

        `batches` are the micro-batches of this process; their gradients add up to those of one batch.
        """
        set_learning_rate(self.optimizer, self.learning_rate(progress.step))
        views = [self.view(batch, progress) for batch in batches]
        if self.adversary is None:
            scalars = self.generator_half(views, progress)
        else:
            set_learning_rate(self.discriminator_optimizer, self.adversary.learning_rate(progress.step))
            self.networks.follow(self.unwrapped_discriminator, progress.epoch)
            if self.order == "lean":
                scalars = self.both_halves(views, progress)
            else:
                scalars = self.discriminator_half(views, progress) | self.generator_half(views, progress)
            scalars |= self.path_half(views, progress)
        if self.ema is not None:
            self.ema.update_parameters(self.unwrapped_generator)
        return scalars | self.adapt(views)

    def both_halves(self, views: Sequence[View], progress: TrainingProgress) -> Scalars:
        """Take both gradients at the same discriminator: one pass each over real and fake serves both halves."""
        self.unwrapped_discriminator.requires_grad_(True).train()
        seen: list[Scalars] = []
        for view in self.in_turn(views, self.generator, self.discriminator):
            seen.append(self.judge_and_learn(view, progress, 1 / len(views)))
        scale = self.loss_scale()
        seen[-1] |= self.update("discriminator", self.discriminator_optimizer)
        self.rescale_gradients(scale)
        return mean_of(seen) | self.finish_generator(progress)

    def judge_and_learn(self, view: View, progress: TrainingProgress, share: float) -> Scalars:
        """Add `share` of a micro-batch's gradients to both networks'; its graphs end with this call."""
        reconstruction = self.generator(view.images, view.mask, view.drop_path_masks)
        severed, look = self.sever(reconstruction, view), self.look("pair", view, progress)
        on_real, leaves = self.show_real(view, look, progress)
        on_fake = self.discriminator(look(self.levels_of(severed.pyramid)))
        # The discriminator's own gradient alone: nothing of it reaches the generator, nor the other way round.
        own = {"retain_graph": True, "inputs": list(self.unwrapped_discriminator.parameters())}
        told = self.judge(view, on_real, on_fake, leaves, share, **own)
        on_real, leaves = detached(on_real), ()  # what the generator learns from needs no graph of the real images
        comparison = self.compare(severed, view, look, on_fake=lambda: on_fake, on_real=lambda: on_real)
        return told | self.learn(reconstruction, comparison, progress, share)

    def discriminator_half(self, views: Sequence[View], progress: TrainingProgress) -> Scalars:
        """Tell real from fake: the fake is detached, so nothing of this half reaches the generator."""
        self.unwrapped_discriminator.requires_grad_(True).train()
        self.share_forward(views)
        seen: list[Scalars] = []
        for view in self.in_turn(views, self.discriminator):
            fake = self.levels_of(tuple(level.detach() for level in self.without_graph(view).pyramid))
            on_real, leaves = self.show_real(view, self.look("real", view, progress), progress)
            on_fake = self.discriminator(self.look("fake", view, progress)(fake))
            seen.append(self.judge(view, on_real, on_fake, leaves, 1 / len(views)))
        return mean_of(seen) | self.update("discriminator", self.discriminator_optimizer)

    def generator_half(self, views: Sequence[View], progress: TrainingProgress) -> Scalars:
        """Reconstruct, look real, and match what the frozen discriminator sees in the original."""
        if self.adversary is not None:
            self.unwrapped_discriminator.requires_grad_(False).eval()  # evaluation: spectral norms stand still too
        self.share_forward(views)
        seen: list[Scalars] = []
        for view in self.in_turn(views, self.generator):
            reconstruction = view.reconstruction or self.generator(view.images, view.mask, view.drop_path_masks)
            view.reconstruction = None
            comparison = self.look_again(self.sever(reconstruction, view), view, progress)
            seen.append(self.learn(reconstruction, comparison, progress, 1 / len(views)))
        return mean_of(seen) | self.finish_generator(progress)

    def show_real(self, view: View, look: Look, progress: TrainingProgress) -> tuple[DiscriminatorOutput, Pyramid]:
        """Show the learning discriminator real images; where R1 is due, return the leaves of its gradient too."""
        real, r1 = self.levels_of((view.images,)), self.r1_now(progress)
        leaves, seen = r1.watch(real, look) if r1 is not None else ((), look(real))
        output: DiscriminatorOutput = self.discriminator(seen)
        return output, tuple(leaves)

    def judge(
        self,
        view: View,
        on_real: DiscriminatorOutput,
        on_fake: DiscriminatorOutput,
        leaves: Pyramid,
        share: float,
        **backward: Any,
    ) -> Scalars:
        """Add `share` of a micro-batch's gradients to the discriminator's."""
        assert self.adversary is not None
        loss = self.adversary.loss(on_real.logits, on_fake.logits)
        judged_real = on_real.logits.flatten(1).mean(1)  # one number an image, whatever map the logits are
        penalty = {"penalty/r1": self.adversary.r1(judged_real, leaves)} if leaves and self.adversary.r1 else {}
        self.accelerator.backward(sum(penalty.values(), loss) * share, **backward)
        view.signs = sign_sums(judged_real, self.adversary.center)
        told = {"discriminator/loss": loss, **penalty, **verdict(on_real, on_fake, self.adversary.center)}
        return {name: value.detach() for name, value in told.items()}

    def learn(
        self, attached: Reconstruction, comparison: TermInputs, progress: TrainingProgress, share: float
    ) -> Scalars:
        """Add `share` of a micro-batch's gradients to the generator's, which is behind the attached reconstruction."""
        losses = self.objective(comparison, progress)
        scale = self.loss_scale() * share
        push(self.objective.gradients(losses, comparison.reconstruction, attached, progress, scale), attached.ends)
        told = {"total": losses.total} | {f"raw/{name}": value for name, value in losses.raw.items()}
        told |= {f"weighted/{name}": value for name, value in losses.weighted.items()}
        if self.objective.balance.is_due(progress.step) and len(comparison.fake[0]) > 1:
            told["variety"] = variety(comparison.fake[0], comparison.real[0])
        return {name: value.detach() for name, value in told.items()}

    def finish_generator(self, progress: TrainingProgress) -> Scalars:
        """Take the generator's step, and conclude what was measured of its gradients."""
        measured = self.objective.conclude(progress, lambda squares: self.accelerator.reduce(squares, reduction="sum"))
        return self.update("generator", self.optimizer, self.clip_norm) | measured

    def path_half(self, views: Sequence[View], progress: TrainingProgress) -> Scalars:
        """Keep steps of the decoder's input equally long in features: an update of its own, on half the images."""
        adversary = self.adversary
        if adversary is None or (penalty := adversary.path_length) is None or not penalty.is_due(progress.step):
            return {}
        self.unwrapped_discriminator.requires_grad_(False).eval()
        seen: list[Scalars] = []
        for view in self.in_turn(views, self.generator):
            half = slice(0, max(1, len(view.images) // 2))
            streams = [stream("path", adversary.seed, progress.step, index) for index in view.indices[half].tolist()]
            with sdpa_kernel(SDPBackend.MATH):  # the other attention kernels have no second derivative
                drop_path_masks = None if view.drop_path_masks is None else view.drop_path_masks[half]
                reconstruction = self.generator(view.images[half], view.mask[half], drop_path_masks)
                fake = self.levels_of(reconstruction.pyramid)
                features = self.unwrapped_discriminator(fake).features if penalty.target == "features" else fake[:1]
                noise = path_noise([feature.shape[1:] for feature in features], streams)
                loss = penalty(features, reconstruction.latent, noise)
                # Levels that the penalty does not read need a gradient too, where processes wait for all of them.
                unread = 0 * torch.stack([level.sum() for level in reconstruction.pyramid]).sum()
                self.accelerator.backward((loss + unread) / len(views))
            seen.append({"penalty/path_length": loss.detach()})
        penalty.finish(lambda sums: self.accelerator.reduce(sums, reduction="sum"))
        seen[-1] |= {"path_length/mean": penalty.expected} | self.update("path_length", self.optimizer, self.clip_norm)
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
        told: Scalars = {}
        if clip_norm is not None:
            told[f"gradient_norm/{name}"] = self.accelerator.clip_grad_norm_(self.generator.parameters(), clip_norm)
        before = self.loss_scale()
        optimizer.step()
        optimizer.zero_grad()
        if self.accelerator.scaler is not None:
            told[f"skipped/{name}"] = (self.loss_scale() < before).float()  # it falls exactly when a step is skipped
        return told

    def loss_scale(self) -> Tensor:
        """Return what losses are multiplied by in fp16, otherwise 1: a tensor, for a number would wait."""
        scaler, one = self.accelerator.scaler, torch.ones((), device=self.accelerator.device)
        return one if scaler is None else cast(Tensor, scaler.scale(one))

    def rescale_gradients(self, scale: Tensor) -> None:
        """Bring the generator's gradients to the scale that the discriminator's update has left (fp16 only)."""
        if self.accelerator.scaler is not None:
            gradients = [
                parameter.grad for parameter in self.unwrapped_generator.parameters() if parameter.grad is not None
            ]
            torch._foreach_mul_(gradients, self.loss_scale() / scale)

    def compare(
        self, reconstruction: Reconstruction, view: View, look: Look = tuple, **seen: Callable[[], DiscriminatorOutput]
    ) -> TermInputs:
        """Set a reconstruction beside the original, with what the discriminator (if there is one) and others see.

        Copies of the discriminator are shown what it is shown (`look`), other loss networks the images themselves.
        """
        images, levels = view.images, len(reconstruction.pyramid)
        return TermInputs(
            reconstruction,
            real=lambda: pyramid(images, levels),
            target=lambda: self.unwrapped_generator.target(images, levels),
            eyes=self.networks.eyes(lambda levels: look(self.levels_of(levels)), self.accelerator.autocast),
            **seen,
        )

    def look_again(self, reconstruction: Reconstruction, view: View, progress: TrainingProgress) -> TermInputs:
        """Compare through the bare, frozen discriminator: real and fake under one draw, feature by feature."""
        if self.adversary is None:
            return self.compare(reconstruction, view)
        look, discriminator = self.look("pair", view, progress), self.unwrapped_discriminator

        def on_real() -> DiscriminatorOutput:
            with torch.no_grad():  # targets: never differentiated
                return cast(DiscriminatorOutput, discriminator(look(self.levels_of((view.images,)))))

        return self.compare(
            reconstruction,
            view,
            look,
            on_fake=lambda: discriminator(look(self.levels_of(reconstruction.pyramid))),
            on_real=on_real,
        )

    def sever(self, reconstruction: Reconstruction, view: View) -> Reconstruction:
        """Return the reconstruction on leaves of its own, at which the gradients of all terms are collected."""
        return reconstruction.severed(lambda prediction: self.unwrapped_generator.to_images(prediction, view.images))

    def look(self, purpose: str, view: View, progress: TrainingProgress) -> Look:
        """Return what a micro-batch goes through before the discriminator sees it."""
        assert self.adversary is not None
        return self.adversary.look(purpose, view.indices, progress.step)

    def r1_now(self, progress: TrainingProgress) -> R1 | None:
        r1 = self.adversary.r1 if self.adversary is not None else None
        return r1 if r1 is not None and r1.is_due(progress.step) else None

    def share_forward(self, views: Sequence[View]) -> None:
        """Let one forward serve both halves; several micro-batches cannot keep all their graphs and run it again."""
        if len(views) == 1 and views[0].reconstruction is None:
            views[0].reconstruction = self.generator(views[0].images, views[0].mask, views[0].drop_path_masks)

    def levels_of(self, images: Pyramid) -> Pyramid:
        """Return as many levels as the discriminator reads, pooling the full size where only that is given."""
        return images[: self.levels] if len(images) >= self.levels else pyramid(images[0], self.levels)

    def without_graph(self, view: View) -> Reconstruction:
        """Return the shared reconstruction, or a passing one where micro-batches run the generator per half."""
        if view.reconstruction is not None:
            return view.reconstruction
        with torch.no_grad():
            reconstruction: Reconstruction = self.unwrapped_generator(view.images, view.mask, view.drop_path_masks)
        return reconstruction

    def view(self, batch: Batch, progress: TrainingProgress) -> View:
        """Move a micro-batch to the device, in the generator's precision, and draw its masks and drop_path_masks."""
        images = batch.to(self.accelerator.device).images.to(self.unwrapped_generator.encoder.mean.dtype)
        return View(images, self.draw_masks(batch, progress), batch.indices, self.draw_drop_path_masks(batch))

    def in_turn(self, views: Sequence[View], *networks: nn.Module) -> Iterator[View]:
        """Yield the micro-batches; processes exchange the networks' gradients in the last one only."""
        for view in views:
            with ExitStack() as quiet:
                for network in networks if view is not views[-1] else ():
                    quiet.enter_context(self.accelerator.no_sync(network))
                yield view


def detached(output: DiscriminatorOutput) -> DiscriminatorOutput:
    return DiscriminatorOutput(output.logits.detach(), tuple(feature.detach() for feature in output.features))
