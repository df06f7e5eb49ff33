"""Shared fixtures: one thread, a fresh Accelerate for every test, runs of debug size."""

import gc
import importlib
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two tests at a time; set before PyTorch reads it

import numpy as np
import pytest
import torch
from _pytest.mark.structures import ParameterSet
from accelerate.state import AcceleratorState, GradientState
from hypothesis import settings

from perceptual_mae import pretrain
from perceptual_mae.config.build import build_generator
from perceptual_mae.config.layers import list_methods, list_recipes, merge_layers
from perceptual_mae.config.parsing import RunConfig, load_config
from perceptual_mae.data import cifar10 as data_of_cifar10
from perceptual_mae.data.loading import Batch
from perceptual_mae.evaluation.open_run import make_accelerator
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.generator.reconstruction import Reconstruction
from perceptual_mae.images import Pyramid
from perceptual_mae.objective.objective import Losses, Objective
from perceptual_mae.objective.term_inputs import TermInputs
from perceptual_mae.run import checkpoint
from perceptual_mae.schedules import Timetable, TrainingProgress
from perceptual_mae.training.build import build_trainer
from perceptual_mae.training.micro_batch import MicroBatch
from perceptual_mae.training.trainer import Trainer

settings.register_profile("all", settings())  # of fuzzed tests, which else take a part of their cases

ON_WIDE_VECTORS = torch.backends.cpu.get_cpu_capability() == "AVX512"
"""Whether numbers are added up in the order of the processors that made the fixtures of old runs."""

TESTS = Path(__file__).resolve().parent
DEBUG = str(TESTS / "debug.yaml")
SHARED_DATA = Path(__file__).parents[1] / "../shared/data"


LATER = (
    *("scripts", "perceptual_mae/benchmark", "perceptual_mae/interop", "perceptual_mae/transfer"),
    *("perceptual_mae/demo", "perceptual_mae/report/page"),
    *("perceptual_mae/evaluation/test_resumption", "perceptual_mae/cli/test_trust_code"),
    *("perceptual_mae/evaluation/test_cached_resumption", "perceptual_mae/training/test_branching"),
)
"""Tests of what few users run: they are in the slow tier, but for the page that may be stale."""
LONG_FILES = ("test_soak", "test_tutorial", "test_shipped_on_real_images", "test_recorded_steps", "test_fuzz")
"""Files of minutes: they go first, for a file stays on one core, and the other would wait at the end."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them slow before tests are chosen by their marks, and put long files first."""
    items.sort(key=lambda item: item.path.stem not in LONG_FILES)
    for item in items:
        place = item.path.relative_to(TESTS).as_posix()
        is_slow = place.startswith(LATER) and item.path.stem != "test_references"
        if is_slow and item.get_closest_marker("exhaustive") is None:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none"))


def pytest_collection_finish() -> None:
    """What was imported is no garbage: no collection need look at it."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def signals_of_a_terminal() -> None:
    """Under nohup a hang-up is ignored, by what is started, too."""
    for number in (signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="session")
def own_cache_of_headers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test leaves anything in the user's cache, or reads what is there."""
    cache = tmp_path_factory.mktemp("cache")
    with (
        mock.patch("perceptual_mae.data.unreadable.user_cache", return_value=cache),
        mock.patch("perceptual_mae.data.shard_index.user_cache", return_value=cache),
    ):
        yield


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its state for the whole process; no test may see another's."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


SMALL = {"msg_gan": "discriminator.base_channels=16", "stylegan2": "discriminator.channel_base=256"}


PERCEPTUAL = ("feature_matching", "style")
UNTRAINED = {method: [f"losses.{term}.network.weights=random" for term in PERCEPTUAL] for method in ("dvae_p", "vgg_p")}
RANDOM_FEATURES = "losses.feature_matching.network.weights=random"
UNTRAINED |= {method: [RANDOM_FEATURES] for method in ("teacher_p", "vqgan_p")}
UNTRAINED["projected_p"] = [RANDOM_FEATURES, "discriminator.network.weights=random"]
"""For methods that want a file of weights, what makes them go without."""


class KilledError(BaseException):
    """Ends a command as SIGKILL does."""


def killed_at(place: str, number: int = 1) -> Any:
    """End everything at the given call of a function, named with its module."""
    module, _, name = place.rpartition(".")
    function, calls = getattr(importlib.import_module(module), name), []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            raise KilledError
        return function(*arguments, **options)

    return mock.patch(place, counted)


FORMS = {
    "pooled": ("msg_gan_p", "discriminator.pyramid=pooled", "discriminator.low_levels=k^-2"),
    "discounted": ("msg_gan_p", "discriminator.low_levels=0.1"),
    "composite": ("ls_gan_p", "discriminator.fake=composite", "discriminator.discretise=true"),
    "by_position": (
        *(
            "ls_gan_p",
            "discriminator.fake=composite",
            "discriminator.form=patch",
            "losses.adversarial.targets=position",
        ),
    ),
    "relativistic": ("ls_gan_p", "losses.adversarial.kind=relativistic", "penalties={r1: {}, r2: {}, lecam: {}}"),
    "diffaug": ("ls_gan_p", "augment={kind: diffaug}"),
    "projected": (
        *("ls_gan_p", "discriminator={kind: projected, width: 8}"),
        "discriminator.network={kind: named, name: squeezenet1_0, layers: [features.4], weights: random}",
    ),
    "shared": (
        *("msg_gan_p", "discriminator.batch_share=0.5", "discriminator.minibatch_group=2"),
        "penalties={r1: {every: 1, batch_share: 0.5}, r2: {every: 3, batch_share: 0.5}}",
    ),
    "cropped": ("ls_gan_p", "discriminator.crop=16", "discriminator.every=3", "augment={kind: ada, initial_p: 0.5}"),
    "balanced_at_weights": ("ls_gan_p", "losses.adversarial.weight={balanced: 0.3, at: decoder, every: 4}"),
}
"""Ways to the discriminator and back, other than those of the paper."""


QUICK_FORMS = ("pooled", "relativistic", "cropped")
"""With these a test of all forms passes through every new part of the step."""


def tiered_forms() -> list[Any]:
    """Forms as parameters of a test, slow ones marked."""
    return [name if name in QUICK_FORMS else slow(name) for name in FORMS]


ADVERSARIAL = sorted(
    method.name for method in list_methods() if merge_layers([method.name]).values.get("discriminator") is not None
)
"""Methods with a discriminator."""

QUICK_METHODS = ("mse", "ls_gan_p", "stylegan2_ada_p")
"""One without discriminator, of one level, of a pyramid: a test of all methods takes the others in later tiers."""


def tiered(methods: Iterable[str]) -> list[Any]:
    """Methods as parameters of a test: the quick ones, and of the others one half slow and one run by hand."""
    methods = list(methods)
    quick = [name for name in methods if name in QUICK_METHODS]
    return [*quick, *halved([name for name in methods if name not in QUICK_METHODS])]


def sampled(rows: Sequence[Any], ids: Sequence[str] | None = None, every: int = 6) -> list[ParameterSet]:
    """Rows of a long table as parameters of a test: one of `every` few, the others slow. ids: names of the rows."""
    names = ids or [None] * len(rows)
    return [
        pytest.param(*row, id=name, marks=[pytest.mark.slow] * (number % every != 0))
        for number, (row, name) in enumerate(zip(rows, names, strict=True))
    ]


def slow(*values: object) -> ParameterSet:
    """One set of a parametrised test's values, for the slow tier."""
    return pytest.param(*values, marks=pytest.mark.slow)


def by_hand(*values: object) -> ParameterSet:
    """One set of a parametrised test's values, for the exhaustive tier."""
    return pytest.param(*values, marks=pytest.mark.exhaustive)


def halved(rows: Sequence[Any]) -> list[ParameterSet]:
    """Rows of a long test as its parameters: every other one is in the slow tier, the rest is run by hand."""
    return [
        pytest.param(*(row if isinstance(row, tuple) else (row,)), marks=later)
        for row, later in zip(rows, cycle((pytest.mark.slow, pytest.mark.exhaustive)))
    ]


def without_weights(method: str) -> list[str]:
    """A method with what it needs to be a configuration where no file of weights is at hand."""
    return [method, *UNTRAINED.get(method, [])]


def recipes_and_methods() -> list[ParameterSet]:
    """All pairs of a shipped recipe and a method; by default each recipe with ls_gan_p and cifar10 with a few.

    Of the others one in ten is in the slow tier.

    Left out is a method whose loss teaches the encoder with the recipe that freezes it.
    """
    pairs = [(recipe.name, method.name) for recipe in list_recipes() for method in list_methods()]
    pairs.remove(("sharpen_published", "improved_mae"))
    quick = {("cifar10", method) for method in QUICK_METHODS} | {(recipe, "ls_gan_p") for recipe, _ in pairs}
    later = [pytest.mark.slow, *[pytest.mark.exhaustive] * 9]
    return [pytest.param(*pair, marks=[] if pair in quick else [later[n % 10]]) for n, pair in enumerate(pairs)]


@cache
def debug_config(*arguments: str) -> RunConfig:
    """A configuration of debug size, with methods (their networks narrow and untrained) and overrides on top.

    Parsed once for the same arguments: configurations are frozen, and tables of tests are made of them.
    """
    discriminator = merge_layers([argument for argument in arguments if argument]).values["discriminator"] or {}
    narrow = [SMALL[kind]] if (kind := discriminator.get("kind")) in SMALL else []
    if "dvae_p" in arguments:
        narrow += [f"losses.{term}.network.width=16" for term in PERCEPTUAL]
    methods = [part for argument in arguments for part in without_weights(argument)]
    return load_config([DEBUG, *methods, *narrow])


def generator_of(config: RunConfig) -> MaskedAutoencoder:
    """The generator of a configuration, at its first step."""
    return build_generator(config.generator, config.data.image, config.training.seed)


def debug_trainer(*arguments: str, dtype: torch.dtype = torch.float32) -> Trainer:
    """A trainer of debug size on this process, with 8 steps an epoch for the schedules."""
    config = debug_config(*arguments)
    torch.set_default_dtype(dtype)
    try:
        return build_trainer(config, make_accelerator(config, training=True), Timetable(8, 16, 1))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def labelled_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of debug size, trained on digits once for a module: copy it to write to it."""
    path = tmp_path_factory.mktemp("labelled") / "run"
    torch.set_num_threads(1)
    config = ["mse", "data={kind: digits, image_size: 32}", "data.num_images=null", "training.epoch_images=16"]
    pretrain(debug_config(*config, "training.epochs=1", "evaluation.limit=4"), path, quiet=True)
    return path


@pytest.fixture(scope="module")
def no_waiting_for_disk_and_memory() -> Iterator[None]:
    """Checkpoints need not be on the disk, nor memory be given back, before a test goes on."""
    with mock.patch.object(checkpoint, "_flush_to_disk"), mock.patch("gc.collect"):
        yield


def term_inputs(trainer: Trainer, progress: TrainingProgress, size: int = 4) -> tuple[TermInputs, MicroBatch]:
    """What terms read of a random batch through the frozen discriminator, all of it, and the batch."""
    (batch,) = trainer.prepare(random_batches(size), progress)
    reconstruction = trainer.generator(batch.images, batch.mask)
    return inputs_of(trainer, reconstruction, batch, progress), batch


def inputs_of_step(trainer: Trainer, batches: list[Batch], progress: TrainingProgress) -> list[TermInputs]:
    """Take a step; return what its terms were given, by micro-batch."""
    inputs: list[TermInputs] = []

    def recorded(objective: Objective, given: TermInputs, progress: TrainingProgress) -> Losses:
        inputs.append(given)
        return call(objective, given, progress)

    call = Objective.__call__
    with mock.patch.object(Objective, "__call__", recorded):
        trainer.step(batches, progress)
    return inputs


def real_levels(trainer: Trainer, images: torch.Tensor) -> Pyramid:
    """Originals (B, C, H, W) as the discriminator is shown them, before augmentation."""
    return trainer.adversary.input.real(images)


def inputs_of(
    trainer: Trainer, reconstruction: Reconstruction, batch: MicroBatch, progress: TrainingProgress
) -> TermInputs:
    """What terms read of a reconstruction through the frozen discriminator, real and fake augmented alike."""
    target, outputs, augment = trainer.unwrapped_generator.target, [], tuple
    if trainer.adversary is not None:
        augment = trainer.augmentation("pair", batch, progress)
        frozen = trainer.unwrapped_discriminator.requires_grad_(False).eval()
        shown = (real_levels(trainer, batch.images), trainer.fake_images(batch, reconstruction))
        outputs = [frozen(augment(levels)) for levels in shown]

    def show(levels: Pyramid) -> Pyramid:
        return augment(trainer.adversary.input(levels, batch.images, reconstruction.mask, reconstruction.grid))

    extractors = trainer.networks.extractors(show, trainer.accelerator.autocast)
    return TermInputs(batch.images, reconstruction, target, *(outputs or (None, None)), extractors)


def random_batches(size: int, micro_batches: int = 1, shape: Sequence[int] = (3, 32, 32), seed: int = 0) -> list[Batch]:
    """One global batch of random images cut by stride into micro-batches, as the loader cuts it."""
    images = torch.randint(0, 256, (size, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    indices = torch.arange(size)
    cut = [slice(first, None, micro_batches) for first in range(micro_batches)]
    ones = torch.ones_like(indices)
    return [Batch(images[part], -ones[part], indices[part], ones[part], ()) for part in cut]


def write_black_stl10(root: Path, **counts: int) -> None:
    """Write black images in STL-10's layout, so many of each part, with labels 1 to 10 in turn."""
    folder = root / "stl10_binary"
    folder.mkdir()
    for part, count in counts.items():
        np.zeros((count, 3, 96, 96), dtype=np.uint8).tofile(folder / f"{part}_X.bin")
        (np.arange(count, dtype=np.uint8) % 10 + 1).tofile(folder / f"{part}_y.bin")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real images and networks next to a checkout; without them the test is skipped."""
    if not SHARED_DATA.exists():
        pytest.skip("needs the real images of ../shared/data, which are not next to this checkout")
    return SHARED_DATA.resolve()


@pytest.fixture(scope="session")
def cifar10(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All of CIFAR-10, unpacked; its files are checked and read once for all tests, which takes a second."""
    folder = tmp_path_factory.mktemp("cifar10")
    script = str(shared_data / "unpack_cifar10.py")
    subprocess.run([sys.executable, script, str(folder)], check=True, capture_output=True)
    always, once = data_of_cifar10._open, cache(data_of_cifar10._open)

    def opened(root: str, part: str, download: bool) -> Any:
        return (once if root == str(folder) else always)(root, part, download)

    with mock.patch.object(data_of_cifar10, "_open", opened):
        yield folder


@pytest.fixture(scope="session")
def paintings(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Paintings in class folders below train/ and test/."""
    folder = tmp_path_factory.mktemp("paintings")
    with zipfile.ZipFile(shared_data / "wikiart_paintings.zip") as members:
        members.extractall(folder)
    return folder / "wikiart_paintings"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, driven by playwright, which is no dependency."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright.sync_playwright() as started:
        try:
            browser = started.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        except playwright.Error as failure:
            pytest.skip(f"no Chromium starts: {str(failure).splitlines()[0]}")
        yield browser
        browser.close()
