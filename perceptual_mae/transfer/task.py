"""A dense transfer from its recipe to its report: what segmentation and detection have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar, cast

import torch
from accelerate import Accelerator
from torch import nn

from perceptual_mae.config.from_signature import Section
from perceptual_mae.data.epoch_order import EpochPlan, ProcessShare
from perceptual_mae.evaluation.resumption import Checkpoints, ResumableTrainings
from perceptual_mae.progress import OnProgress, no_progress
from perceptual_mae.run.checkpoint import write_tensors
from perceptual_mae.transfer.encoders import Source
from perceptual_mae.transfer.loading import Annotated, Collate, SampleLoader
from perceptual_mae.transfer.recipes import Command, TransferConfig
from perceptual_mae.transfer.seeds import Files, summary
from perceptual_mae.transfer.taps import Taps
from perceptual_mae.transfer.training import DenseNetwork, groups_of, train

Limits = tuple[int | None, int | None]
"""How many images are trained on, and scored; None: all."""


class AnnotatedClasses(Annotated, Protocol):
    """Annotated images, and the names of their classes."""

    @property
    def classes(self) -> Sequence[str]: ...

    def first(self, count: int | None) -> Self: ...

    def check_headers(self) -> None: ...


Config = TypeVar("Config", bound=TransferConfig)
Data = TypeVar("Data", bound=AnnotatedClasses)
Network = TypeVar("Network", bound=nn.Module)
Scored = TypeVar("Scored")


@dataclass(eq=False)
class Task(ABC, Generic[Config, Data, Network, Scored]):
    """An encoder that is transferred to a dense task: the task's data, network and scores.

    frozen: the head alone is trained.
    """

    command: ClassVar[Command]
    config_type: ClassVar[type[Section]]

    source: Source
    config: Config
    train_data: Data
    test_data: Data
    frozen: bool = False

    @classmethod
    def open(cls, source: Source, config: Config, limits: Limits = (None, None), *, frozen: bool = False) -> Self:
        """Open the data and check the headers of their files; raise UserError for what cannot be trained on."""
        train_data, test_data = (data.first(count) for data, count in zip(cls.read(config), limits, strict=True))
        train_data.check_headers()
        test_data.check_headers()
        return cls(source, config, train_data, test_data, frozen)

    @classmethod
    @abstractmethod
    def read(cls, config: Config) -> tuple[Data, Data]:
        """Return the images that are trained on and those that are scored; raise UserError for what is not there."""

    @classmethod
    @abstractmethod
    def dry_run(cls, source: Source, config: Config, *, frozen: bool = False) -> list[str]:
        """Return the encoder's maps, parameters, steps, learning rates by layer, memory, and which images there are.

        Weights are not read: those of the encoder are of its shape alone. Images need not be there.
        """

    @abstractmethod
    def build(self, seed: int) -> tuple[Network, Taps]:
        """Return the network at its first step, the head drawn from the seed, and the maps that it reads."""

    @abstractmethod
    def parts(self, network: Network) -> Mapping[str, nn.Module]:
        """Return the parts whose parameters are counted, by their names."""

    @abstractmethod
    def transform(self) -> Callable[[Any, torch.Generator], Any]:
        """Return what prepares a training image; see `SampleLoader`."""

    @property
    @abstractmethod
    def collate(self) -> Collate:
        """What makes a batch of prepared images."""

    @abstractmethod
    def data_report(self) -> Mapping[str, Any]:
        """Return what a report says of the data: which they are, the split that is scored, what was left out."""

    @abstractmethod
    def score(self, network: Network, accelerator: Accelerator, name: str, on_progress: OnProgress) -> Scored:
        """Return the scores of all held-out images, on all processes."""

    @abstractmethod
    def recorded_scores(self, scored: Scored) -> Mapping[str, float]:
        """Return the scores that are recorded while a network is trained."""

    @abstractmethod
    def result(self, scored: Scored) -> dict[str, Any]:
        """Return a seed's outcome as JSON: its `scores` by name (None: there is none), and what `gathered` needs."""

    @abstractmethod
    def gathered(self, results: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
        """Return what a report of all seeds' results has in addition to the means of their scores."""

    @abstractmethod
    def write(
        self, network: Network, scored: Scored, accelerator: Accelerator, files: Files, seed: int, *, has_page: bool
    ) -> None:
        """Write the files of a seed and, where it `has_page`, the page of predictions next to the truth."""


def run_task(
    task: Task[Config, Data, Network, Scored],
    accelerator: Accelerator,
    files: Files,
    *,
    seeds: Sequence[int] = (0,),
    save_weights: bool = False,
    checkpoints: Checkpoints | None = None,
    on_progress: OnProgress = no_progress,
) -> dict[str, Any]:
    """Return scores in [0, 1] of an encoder that is trained with a head, a training a seed, and how it was done.

    A seed decides the head, the order and the draws, and from scratch the encoder's weights. Nothing is chosen on the
    scored images: the last step counts. The page of the first seed, the records of each training and what else the task
    writes go to `files`. With `checkpoints` SIGINT and SIGTERM save and raise Interrupted, and the same call goes on,
    exactly; they are the caller's to discard when the report is written.
    """
    loader_of(task, accelerator, seeds[0])  # refuses what cannot be augmented or shared
    report = described(task, accelerator, seeds)
    files.folder.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in report.items() if key not in ("run", "processes")}
    settings["recipe"] = without_reading(report["recipe"])
    with ResumableTrainings(accelerator, settings, checkpoints) as trainings:
        for seed in seeds:
            name = f"seed {seed}"
            if name in trainings.results:
                continue
            network, records = trained(task, accelerator, trainings, files, seed, on_progress)
            network.to(accelerator.device)
            stoppable = trainings.stoppable(on_progress)
            scored = task.score(network, accelerator, f"{name}, {report['split']}", stoppable)
            if accelerator.is_main_process:
                task.write(network, scored, accelerator, files, seed, has_page=seed == seeds[0])
                if save_weights:
                    write_tensors(files.of_seed(seed, "safetensors"), network.state_dict())
            curve = [{"step": each["step"], "total": each["total"]} for each in records]
            trainings.finish({**task.result(scored), "curve": curve})
            del network, scored  # their memory is the next seed's
    results = {seed: trainings.results[f"seed {seed}"] for seed in seeds}
    return report | {
        "scores": summaries([each["scores"] for each in results.values()]),
        **task.gathered(results),
        "curves": {str(seed): each["curve"] for seed, each in results.items()},
    }


def described(
    task: Task[Config, Data, Network, Scored], accelerator: Accelerator, seeds: Sequence[int]
) -> dict[str, Any]:
    """Return what a report says before anything is trained: of the encoder, the network, the data and the recipe."""
    network, taps = task.build(seeds[0])
    return {
        "kind": task.command,
        **task.source.describe(),
        "from_scratch": task.source.from_scratch,
        "frozen": task.frozen,
        "taps": {"blocks": list(taps.blocks), "source": taps.source, "norms": taps.has_norms},
        "parameters": {
            name: sum(each.numel() for each in part.parameters()) for name, part in task.parts(network).items()
        },
        "drop_path": cast(DenseNetwork, network).drop_path,
        "precision": accelerator.mixed_precision,
        **task.data_report(),
        "train_images": len(task.train_data),
        "test_images": len(task.test_data),
        "classes": len(task.train_data.classes),
        "seeds": list(seeds),
        "recipe": task.config.model_dump(mode="json", by_alias=True),
        "processes": accelerator.num_processes,
    }


def trained(
    task: Task[Config, Data, Network, Scored],
    accelerator: Accelerator,
    trainings: ResumableTrainings,
    files: Files,
    seed: int,
    on_progress: OnProgress,
) -> tuple[Network, list[dict[str, Any]]]:
    """Return the network of a seed after its last step, and the records of its losses."""
    config, training = task.config, task.config.training
    network, _ = task.build(seed)
    score = partial(task.score, network, accelerator, "scoring", no_progress)
    records = train(
        network,
        loader_of(task, accelerator, seed),
        groups_of(network, config.optimizer),
        config.schedule.at(config.optimizer.lr),
        accelerator,
        seed=seed,
        batch_size=training.batch_size,
        name=f"seed {seed}",
        betas=config.optimizer.betas,
        clip_norm=config.optimizer.clip_norm,
        log_every=training.log_every,
        metrics=files.of_seed(seed, "metrics.jsonl"),
        trainings=trainings,
        score=lambda: task.recorded_scores(score()),
        score_every=training.score_every,
        on_progress=on_progress,
    )
    return network, records


def loader_of(task: Task[Config, Data, Network, Scored], accelerator: Accelerator, seed: int) -> SampleLoader:
    """Return the batches of a training; an epoch is one pass over the images, filled up to whole batches."""
    training, num_images = task.config.training, len(task.train_data)
    whole = -(-num_images // training.batch_size) * training.batch_size
    plan = EpochPlan(num_images, training.batch_size, seed=seed, epoch_images=whole)
    share = ProcessShare(plan, accelerator.num_processes, accelerator.process_index, training.accumulation)
    return SampleLoader(task.train_data, task.transform(), task.collate, share, seed=seed, workers=training.workers)


def summaries(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean, deviation and values of each score over seeds; those that are not there (None) are left out."""
    names = [name for name, value in scores[0].items() if value is not None]
    return {name: summary([each[name] for each in scores]) for name in names}


def without_reading(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe without what decides only where images are, how they are read and what is logged."""
    kept = {section: dict(values) for section, values in recipe.items()}
    kept["data"].pop("root", None)
    for key in ("workers", "log_every"):
        kept["training"].pop(key, None)
    return kept
