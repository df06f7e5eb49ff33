"""One optimiser step of a generator, with or without a discriminator, on any number of processes."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Literal, cast, get_args

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from discriminators import DiscriminatorOutput
from discriminators.augmentation.controller import Controller, sign_sums
from discriminators.penalties import leaves_of
from perceptual_mae.data.loading import Batch
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.generator.reconstruction import Reconstruction
from perceptual_mae.images import Pyramid
from perceptual_mae.loss_networks import LossNetworks
from perceptual_mae.losses.adversarial import hidden_share
from perceptual_mae.objective.objective import Objective
from perceptual_mae.objective.term_inputs import TermInputs
from perceptual_mae.schedules import TrainingProgress, set_learning_rate
from perceptual_mae.seeding import stream
from perceptual_mae.training.adversary import Adversary
from perceptual_mae.training.averaged_weights import AveragedWeights
from perceptual_mae.training.metrics import Scalars, discriminator_statistics, output_diversity
from perceptual_mae.training.micro_batch import MicroBatch
from perceptual_mae.training.path_length_step import path_length_step

Augment = Callable[[Sequence[Tensor]], Pyramid]
DrawMasks = Callable[[Batch, TrainingProgress], Tensor]
DrawDropPathMasks = Callable[[Batch], Tensor]
LearningRate = Callable[[int], float]
Order = Literal["lean", "sequential"]
"""Both gradients at the same discriminator, or the discriminator's update first."""


class Trainer:
    """Updates generator and discriminator; with `adversary` None the same step trains a plain MAE.

    The learning rates are functions of the step. `draw_masks(batch, progress)` returns the masks (B, L) of a
    micro-batch, `draw_drop_path_masks(batch)` its drop-path masks (None: all branches open). `networks` are those that
    terms compare through besides the live discriminator. Scalars that `step` returns are detached and stay on the
    device. Raises ValueError for an unknown order.
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
        draw_drop_path_masks: DrawDropPathMasks | None = None,
        *,
        order: Order,
        clip_norm: float | None = None,
        ema_decay: float | None = None,
    ) -> None:
        if order not in get_args(Order):
            raise ValueError(f"unknown order {order!r} of a step; choose from: {', '.join(get_args(Order))}")
        self.accelerator, self.objective, self.adversary = accelerator, objective, adversary
        self.draw_masks, self.draw_drop_path_masks = draw_masks, draw_drop_path_masks
        self.learning_rate, self.order, self.clip_norm = learning_rate, order, clip_norm
        self.networks = (networks or LossNetworks()).to(accelerator.device)
        self.unwrapped_generator = generator.to(accelerator.device).train()
        self.generator_parameters = [each for each in generator.parameters() if each.requires_grad]
        self.ema = AveragedWeights(generator, ema_decay) if ema_decay else None
        self.generator, self.optimizer = accelerator.prepare(generator, optimizer)
        self.wrapped_networks, self.lr_scale = [self.generator], 1.0
        self.trained_parameters = list(self.generator_parameters)
        self.skipped, self.step_losses = torch.zeros((), device=accelerator.device), list[Tensor]()
        self.discriminator_every = 1 if adversary is None else adversary.every
        if adversary is not None:
            self.unwrapped_discriminator = adversary.network.to(accelerator.device).train()
            self.discriminator_parameters = [each for each in adversary.network.parameters() if each.requires_grad]
            self.discriminator, self.discriminator_optimizer = accelerator.prepare(
                adversary.network, adversary.optimizer
            )
            self.wrapped_networks.append(self.discriminator)
            self.trained_parameters += self.discriminator_parameters

    def step(self, batches: Sequence[Batch], progress: TrainingProgress) -> Scalars:
        """Update the discriminator and the generator once, on the same images under the same masks.

        `batches` are the micro-batches of this process; their gradients add up to those of one batch.
        """
        is_adversarial = self.adversary is not None and progress.fraction >= self.adversary.start
        if is_adversarial and (self.order == "sequential" or progress.step % self.discriminator_every):
            return self.sequential_step(batches, progress)
        prepared, scalars = self.prepare(batches, progress), list[Scalars]()
        for batch in self.micro_batches(prepared, *self.wrapped_networks):
            reconstruction = self.generator(batch.images, batch.mask, batch.drop_path_masks)  # serves both updates
            augment: Augment = tuple
            real_output = fake_output = None
            d_scalars: Scalars = {}

            # Discriminator: real up, fake down, R1 where it is due. The generator gets none of this gradient.
            if is_adversarial:
                augment = self.augmentation("pair", batch, progress)  # one draw an image, for real and fake
                real, leaves = self.real_images(batch, augment, progress)
                fake = leaves_of(augment(self.fake_images(batch, reconstruction)))
                real_output, fake_output = self.discriminator(real), self.discriminator(fake)
                d_loss, d_scalars = self.discriminator_loss(batch, real_output, fake_output, leaves, fake, progress)
                self.accelerator.backward(d_loss * batch.share, inputs=self.discriminator_parameters, retain_graph=True)
                real_output = real_output.detach()
                del d_loss, real, leaves  # the graph of the real images ends here

            # Generator: Perceptual MAE eq. 6, against the same discriminator, which gets none of this gradient.
            g_loss, g_scalars = self.generator_loss(batch, reconstruction, progress, augment, real_output, fake_output)
            self.accelerator.backward(g_loss * batch.share, inputs=self.generator_parameters)
            scalars.append(d_scalars | g_scalars)

        metrics = mean_of(scalars)
        if is_adversarial:
            metrics |= self.update("discriminator", self.discriminator_optimizer)
        metrics |= self.update("generator", self.optimizer, self.clip_norm)
        return metrics | self.finish_step(prepared, progress)

    def sequential_step(self, batches: Sequence[Batch], progress: TrainingProgress) -> Scalars:
        """Take the reference's step: the discriminator's update first, then the generator's against the updated one.

        In steps in which the discriminator does not learn, of either order, this is the generator's update alone.
        Several micro-batches cannot keep all their graphs: the generator then runs once more for its own update.
        """
        prepared, learns = self.prepare(batches, progress), progress.step % self.discriminator_every == 0
        d_scalars, g_scalars = list[Scalars](), list[Scalars]()
        first, shared = prepared[0], None
        if len(prepared) == 1:
            shared = self.generator(first.images, first.mask, first.drop_path_masks)

        # Discriminator: real up, fake down, R1 where it is due. The fake images are detached.
        for batch in self.micro_batches(prepared if learns else (), self.discriminator):
            with torch.no_grad():
                reconstruction = shared or self.unwrapped_generator(batch.images, batch.mask, batch.drop_path_masks)
            fake = tuple(level.detach() for level in self.fake_images(batch, reconstruction))
            real, leaves = self.real_images(batch, self.augmentation("real", batch, progress), progress)
            fake = leaves_of(self.augmentation("fake", batch, progress)(fake))
            real_output, fake_output = self.discriminator(real), self.discriminator(fake)
            d_loss, scalars = self.discriminator_loss(batch, real_output, fake_output, leaves, fake, progress)
            self.accelerator.backward(d_loss * batch.share, inputs=self.discriminator_parameters)
            d_scalars.append(scalars)
        metrics = mean_of(d_scalars)
        if learns:
            metrics |= self.update("discriminator", self.discriminator_optimizer)

        # Generator: Perceptual MAE eq. 6, against the discriminator as it now is, which stands still.
        self.unwrapped_discriminator.requires_grad_(False).eval()  # evaluation: spectral norms stand still too
        for batch in self.micro_batches(prepared, self.generator):
            reconstruction = shared or self.generator(batch.images, batch.mask, batch.drop_path_masks)
            augment = self.augmentation("pair", batch, progress)
            outputs = self.frozen_outputs(batch, reconstruction, progress, augment)
            g_loss, scalars = self.generator_loss(batch, reconstruction, progress, augment, *outputs)
            self.accelerator.backward(g_loss * batch.share, inputs=self.generator_parameters)
            g_scalars.append(scalars)
        metrics |= mean_of(g_scalars) | self.update("generator", self.optimizer, self.clip_norm)
        return metrics | self.finish_step(prepared, progress)

    def prepare(self, batches: Sequence[Batch], progress: TrainingProgress) -> list[MicroBatch]:
        """Set this step's learning rates, and move micro-batches to the device with their masks."""
        self.skipped, self.step_losses = torch.zeros((), device=self.accelerator.device), []
        set_learning_rate(self.optimizer, self.lr_scale * self.learning_rate(progress.step))
        if self.adversary is not None:
            rate = self.lr_scale * self.adversary.learning_rate(progress.step)
            set_learning_rate(self.discriminator_optimizer, rate)
            self.unwrapped_discriminator.requires_grad_(True).train()
            if self.adversary.augmentation is not None:
                self.adversary.augmentation.follow(progress.fraction)
            self.networks.follow(self.unwrapped_discriminator, progress.epoch)
        dtype, prepared = self.unwrapped_generator.encoder.mean.dtype, []
        for batch in batches:
            drop_path_masks = None if self.draw_drop_path_masks is None else self.draw_drop_path_masks(batch)
            images = batch.to(self.accelerator.device).images.to(dtype)
            mask, shown = self.draw_masks(batch, progress), None
            if self.adversary is not None and self.adversary.shown_parts is not None:
                shown = self.adversary.shown_parts(batch.indices, progress.step)
            prepared.append(MicroBatch(images, mask, batch.indices, 1 / len(batches), drop_path_masks, shown))
        return prepared

    def micro_batches(self, prepared: Sequence[MicroBatch], *networks: nn.Module) -> Iterator[MicroBatch]:
        """Yield the micro-batches; processes exchange the networks' gradients in the last one only."""
        for batch in prepared:
            with ExitStack() as no_exchange:
                for network in networks if batch is not prepared[-1] else ():
                    no_exchange.enter_context(self.accelerator.no_sync(network))
                yield batch

    def augmentation(self, purpose: str, batch: MicroBatch, progress: TrainingProgress) -> Augment:
        """Return what images go through before the discriminator is shown them: one draw an image, for all levels.

        The draws are functions of (seed, step, sample index) and of the purpose: images of one purpose are augmented
        alike.
        """
        assert self.adversary is not None
        augmentation = self.adversary.augmentation
        if augmentation is None:
            return tuple
        coordinates = [(self.adversary.seed, progress.step, index) for index in batch.shown_indices.tolist()]
        draws = augmentation.draw([stream(f"ada {purpose}", *each) for each in coordinates])
        return lambda levels: augmentation.apply(draws, levels)

    def fake_images(self, batch: MicroBatch, reconstruction: Reconstruction) -> Pyramid:
        """Return what the discriminator is shown of reconstructions, before augmentation."""
        assert self.adversary is not None
        levels, mask = reconstruction.pyramid, reconstruction.mask
        return self.adversary.input(levels, batch.images, mask, reconstruction.grid, batch.shown)

    def real_images(self, batch: MicroBatch, augment: Augment, progress: TrainingProgress) -> tuple[Pyramid, Pyramid]:
        """Return real images as the discriminator is shown them and, where R1 is due, the leaves of its gradient."""
        assert self.adversary is not None
        real, r1 = self.adversary.input.real(batch.images, batch.shown), self.adversary.r1
        if r1 is None or not r1.is_due(progress.step // self.discriminator_every):
            return augment(real), ()
        leaves, shown = r1.require_input_gradients(real, augment)
        return tuple(shown), tuple(leaves)

    def discriminator_loss(
        self,
        batch: MicroBatch,
        real_output: DiscriminatorOutput,
        fake_output: DiscriminatorOutput,
        leaves: Pyramid,
        fake: Pyramid,
        progress: TrainingProgress,
    ) -> tuple[Tensor, Scalars]:
        """Return the discriminator's loss with its penalties, and what is recorded of it.

        leaves: those of R1's gradient, none where it is not due; fake: what the fake output was computed from.
        """
        assert self.adversary is not None
        r1, r2, lecam = self.adversary.r1, self.adversary.r2, self.adversary.lecam
        step = progress.step // self.discriminator_every  # penalties count the discriminator's updates
        grid, kind, fake_logits = self.unwrapped_generator.grid, self.adversary.kind, fake_output.logits
        loss = self.adversary.loss(real_output.logits, fake_logits, batch.mask, grid)
        scalars = {"discriminator/loss": loss.detach()}
        penalties: Scalars = {}
        if leaves and r1 is not None:
            output = real_output if r1.batch_share == 1 else self.discriminator(leaves)
            penalties["penalty/r1"] = r1(output.image_logits, leaves, progress.fraction)
        if r2 is not None and r2.is_due(step):
            leaves = fake if r2.batch_share == 1 else r2.part(fake)
            output = fake_output if r2.batch_share == 1 else self.discriminator(leaves)
            penalties["penalty/r2"] = r2(output.image_logits, leaves, progress.fraction)
        if lecam is not None:
            penalties["penalty/lecam"] = lecam(real_output.logits, fake_logits, step)
        for name, penalty in penalties.items():
            loss, scalars[name] = loss + penalty, penalty.detach()
        self.step_losses.append(loss.detach())
        hidden = hidden_share(batch.mask, grid, fake_logits) if self.adversary.by_position else None
        real_scores, fake_scores = kind.image_scores(real_output.logits, fake_logits, hidden)
        if self.adversary.augmentation is not None and self.adversary.augmentation.controller is not None:
            batch.real_signs = sign_sums(real_scores, kind.center)
        return loss, scalars | discriminator_statistics(real_scores, fake_scores, kind.center)

    def generator_loss(
        self,
        batch: MicroBatch,
        reconstruction: Reconstruction,
        progress: TrainingProgress,
        augment: Augment = tuple,
        real_output: DiscriminatorOutput | None = None,
        fake_output: DiscriminatorOutput | None = None,
    ) -> tuple[Tensor, Scalars]:
        """Return the generator's loss and what is recorded of it; gradients of single terms are measured where due.

        Copies of the discriminator are shown what it is shown, other loss networks the images themselves.
        """

        def show(levels: Pyramid) -> Pyramid:
            assert self.adversary is not None
            mask, grid = reconstruction.mask, reconstruction.grid
            return augment(self.adversary.input(levels, batch.images, mask, grid, batch.shown))

        extractors = self.networks.extractors(show, self.accelerator.autocast)
        target = self.unwrapped_generator.target
        inputs = TermInputs(batch.images, reconstruction, target, real_output, fake_output, extractors)
        losses = self.objective(inputs, progress)
        if losses.for_encoder is not None:
            reconstruction.keep_from_encoder(losses.for_encoder * batch.share * self.loss_scale())
        self.step_losses.append(losses.total.detach())
        scalars = {"total": losses.total} | {f"raw/{name}": value for name, value in losses.raw.items()}
        scalars |= {f"weighted/{name}": value for name, value in losses.weighted.items()}
        if self.objective.balance.is_due(progress.step):
            raw, weights = self.objective.measured_losses(losses), self.unwrapped_generator.decoder.balanced_weights
            self.objective.balance.measure(raw, reconstruction, weights, progress.step, self.loss_scale())
            if len(batch.images) > 1:
                scalars["variety"] = output_diversity(inputs.fake[0], batch.images)
        return losses.total, {name: value.detach() for name, value in scalars.items()}

    def frozen_outputs(
        self, batch: MicroBatch, reconstruction: Reconstruction, progress: TrainingProgress, augment: Augment
    ) -> tuple[DiscriminatorOutput | None, DiscriminatorOutput | None]:
        """Return what the frozen discriminator makes of real and fake; None of what no active term reads."""
        assert self.adversary is not None
        reads, discriminator = self.objective.reads(progress), self.unwrapped_discriminator
        real_output = fake_output = None
        if reads & {"fake_logits", "fake_features"}:
            fake_output = discriminator(augment(self.fake_images(batch, reconstruction)))
        if reads & {"real_logits", "real_features"}:
            with torch.no_grad():  # targets: never differentiated
                real_output = discriminator(augment(self.adversary.input.real(batch.images, batch.shown)))
        return real_output, fake_output

    def update(self, name: str, optimizer: Optimizer, clip_norm: float | None = None) -> Scalars:
        """Take an optimiser's step and clear its gradients; return the gradient's norm where it is clipped.

        A step with a loss or gradient that is not finite is skipped. In fp16 the scaler does so, which is part of its
        work, and is reported.
        """
        scalars: Scalars = {}
        if clip_norm is not None:
            norm = self.accelerator.clip_grad_norm_(self.generator.parameters(), clip_norm)
            scalars[f"gradient_norm/{name}"] = cast(Tensor, norm)
        scaler = self.accelerator.scaler
        before = self.loss_scale() if scaler is not None else None
        if scaler is None:
            self.update_if_finite(optimizer)
        else:
            optimizer.step()
        optimizer.zero_grad()
        if before is not None:
            after = self.loss_scale()
            scalars[f"skipped/{name}"] = (after < before).float()  # it falls exactly when a step is skipped
            # Gradients of the generator that wait for their own update are brought to the scale that is left.
            waiting = [each.grad for each in self.generator_parameters if each.grad is not None]
            if waiting:
                torch._foreach_mul_(waiting, after / before)
        return scalars

    @torch.no_grad()
    def update_if_finite(self, optimizer: Optimizer) -> None:
        """Take an optimiser's step, but leave weights and moments once a loss or gradient of the step is not finite.

        What decides stays on the device (`skipped`: 1 or 0), handed to the fused optimiser as a loss scaler does it. It
        is the same in all processes: gradients are those of all of them, and losses are added up.
        """
        norm = torch.nn.utils.get_total_norm([each.grad for each in self.trained_parameters if each.grad is not None])
        is_bad = torch.stack([~each.isfinite().to(norm.device) for each in (*self.step_losses, norm)]).any().float()
        if self.step_losses and self.accelerator.num_processes > 1:  # gradients have been exchanged, losses have not
            is_bad = cast(Tensor, self.accelerator.reduce(is_bad, reduction="sum")).clamp_max(1)
        self.step_losses, self.skipped = [], torch.maximum(self.skipped, is_bad)
        inner: Any = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
        if inner.defaults.get("fused"):
            inner.found_inf = self.skipped
            optimizer.step()
            del inner.found_inf
        elif not bool(self.skipped):  # waits for the device: only a fused kernel reads the flag there
            optimizer.step()

    def loss_scale(self) -> Tensor:
        """Return what losses are multiplied by in fp16, otherwise 1: a tensor, for a number would wait."""
        scaler, one = self.accelerator.scaler, torch.ones((), device=self.accelerator.device)
        return one if scaler is None else cast(Tensor, scaler.scale(one))

    def finish_step(self, prepared: Sequence[MicroBatch], progress: TrainingProgress) -> Scalars:
        """Do what follows both updates: measured gradients, path length where due, averaged weights, ADA's p."""
        scalars: Scalars = {}
        if self.objective.balance.is_due(progress.step):
            scalars |= self.objective.conclude(progress, self.sum_over_processes)
        if self.adversary is not None and progress.fraction >= self.adversary.start:
            path_length, augmentation = self.adversary.path_length, self.adversary.augmentation
            if self.adversary.lecam is not None:
                self.adversary.lecam.finish(self.sum_over_processes)
            if path_length is not None and path_length.is_due(progress.step):
                scalars |= path_length_step(self, path_length, prepared, progress)
            learnt = progress.step % self.discriminator_every == 0
            if learnt and augmentation is not None and augmentation.controller is not None:
                scalars |= self.adapt(augmentation.controller, prepared)
        if self.ema is not None:
            self.ema.update_parameters(self.unwrapped_generator)
        return scalars

    def adapt(self, controller: Controller, prepared: Sequence[MicroBatch]) -> Scalars:
        """Let ADA's probability follow how sure the discriminator was of real images, on all processes."""
        signs = torch.stack([batch.real_signs for batch in prepared if batch.real_signs is not None]).sum(0)
        sums = self.sum_over_processes(signs)
        num_images = sum(len(batch.shown_indices) for batch in prepared) * self.accelerator.num_processes
        controller.observe(sums, num_images)
        values = {"augment/p": controller.p, "augment/r_t": controller.r_t}
        return {name: sums.new_full((), value) for name, value in values.items() if not math.isnan(value)}

    def sum_over_processes(self, tensor: Tensor) -> Tensor:
        return cast(Tensor, self.accelerator.reduce(tensor, reduction="sum"))


def mean_of(scalars: Sequence[Scalars]) -> Scalars:
    """Average each scalar over the micro-batches that report it."""
    names = {name: None for each in scalars for name in each}
    return {name: torch.stack([each[name] for each in scalars if name in each]).mean() for name in names}
