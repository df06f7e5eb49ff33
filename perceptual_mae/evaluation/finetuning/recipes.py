"""How an encoder is fine-tuned: MAE's recipe, the paper's, one for small images; every value can be set."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from perceptual_mae.config.errors import RejectedError
from perceptual_mae.config.from_signature import Section, read_as
from perceptual_mae.errors import UserError

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]

RAND_AUGMENT = re.compile(r"rand(-(m|n|p|mstd|mmax|inc)\d+(\.\d+)?)+")

RecipeName = Literal["mae", "paper", "small"]


class FinetuneRecipe(Section):
    """Everything that decides a fine-tuning but data and seed. `batch_size`: of one step, over all processes."""

    epochs: Positive
    batch_size: Annotated[int, Field(ge=2)]
    accumulation: Positive = 1
    lr: Annotated[float, Field(gt=0)] | None = None
    base_lr: Annotated[float, Field(gt=0)] | None = None  # for every 256 images of a batch
    min_lr: NotNegative = 1e-6
    warmup_epochs: NotNegative
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: NotNegative = 0.05
    layer_decay: Annotated[float, Field(gt=0, le=1)]
    drop_path: Decay
    pool: Literal["class_token", "mean"] = "mean"
    smoothing: Decay = 0.1
    mixup: NotNegative
    cutmix: NotNegative
    crop_scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]]
    flip: Share = 0.5
    rand_augment: str | None  # timm's words, such as rand-m9-mstd0.5-inc1
    erasing: Share

    @property
    def peak_rate(self) -> float:
        """The learning rate of the head after the warm-up."""
        if self.base_lr is not None:
            return self.base_lr * self.batch_size / 256
        assert self.lr is not None
        return self.lr

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0


MAE: Mapping[str, Any] = {
    "batch_size": 1024,
    "warmup_epochs": 5,
    "mixup": 0.8,
    "cutmix": 1.0,
    "crop_scale": (0.08, 1.0),
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "erasing": 0.25,
}
MAE_BY_DEPTH: Mapping[int, Mapping[str, Any]] = {
    0: {"epochs": 100, "base_lr": 5e-4, "layer_decay": 0.65, "drop_path": 0.1},
    24: {"epochs": 50, "base_lr": 1e-3, "layer_decay": 0.75, "drop_path": 0.2},
    32: {"epochs": 50, "base_lr": 1e-3, "layer_decay": 0.75, "drop_path": 0.3},
}
"""ViT-B (and all that is no deeper), ViT-L and ViT-H, by the number of blocks from which on they hold."""

PAPER: Mapping[str, Any] = {"lr": 1e-3, "base_lr": None, "min_lr": 0.0, "betas": (0.9, 0.95), "pool": "class_token"}
"""What the paper says: AdamW at 0.001, decay 0.05, 5 epochs of warm-up, a cosine, ViT's own head."""

SMALL: Mapping[str, Any] = {
    # Minutes on two cores: twenty passes, a tenth of them warm-up, batches that a small set fills.
    "epochs": 20,
    "batch_size": 128,
    "warmup_epochs": 2,
    # A peak of 2e-3 at this batch, MAE's for ViT-B. A fourth of it cost six points of held-out accuracy with a
    # pre-trained encoder and none from scratch (docs/results/finetuning.md).
    "base_lr": 4e-3,
    # 0.65 of MAE's twelve blocks leaves the embeddings 0.4% of the rate. Short pre-training leaves more to change.
    "layer_decay": 0.75,
    # A network this small hardly overfits in twenty epochs; mixing, dropping and erasing pay in long trainings only,
    # and RandAugment's shears and posterisations leave little of 32 pixels.
    "drop_path": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "crop_scale": (0.5, 1.0),
    "rand_augment": None,
    "erasing": 0.0,
}

FROM_SCRATCH: Mapping[str, Any] = {"layer_decay": 1.0}
"""Layer decay keeps low layers near what pre-training found. Fresh ones have nothing to keep and must learn as fast."""


def read_recipe(
    name: RecipeName, depth: int, settings: Sequence[str] = (), *, from_scratch: bool = False
) -> FinetuneRecipe:
    """Return a recipe for an encoder of `depth` blocks with `key=value` settings laid over it.

    A warm-up that is not set shortens with the epochs. Raises UserError of one line a mistake.
    """
    values = {**_published(name, depth), **(FROM_SCRATCH if from_scratch else {})}
    given = _parse(settings)
    for one, other in (("lr", "base_lr"), ("base_lr", "lr")):
        if given.get(one) is not None and other not in given:
            values[other] = None
    epochs = given.get("epochs")
    if "warmup_epochs" not in given and isinstance(epochs, int) and epochs > 0:
        values["warmup_epochs"] = values["warmup_epochs"] * min(1.0, epochs / values["epochs"])
    try:
        recipe = read_as(FinetuneRecipe, values | given)
    except RejectedError as rejected:
        raise UserError("\n".join(_format(mistake) for mistake in rejected.mistakes)) from rejected
    _check(recipe)
    return recipe


def _check(recipe: FinetuneRecipe) -> None:
    """Refuse values that do not go together."""
    if (recipe.lr is None) == (recipe.base_lr is None):
        raise UserError("--set lr, base_lr: set one of them; base_lr is the rate for every 256 images of a batch")
    if recipe.warmup_epochs > recipe.epochs:
        raise UserError(f"--set warmup_epochs: {recipe.warmup_epochs:g} is longer than the {recipe.epochs} epochs")
    if recipe.crop_scale[0] > recipe.crop_scale[1]:
        raise UserError(f"--set crop_scale: found {list(recipe.crop_scale)}, must be [smallest, largest] share")
    if recipe.rand_augment is not None and not RAND_AUGMENT.fullmatch(recipe.rand_augment):
        raise UserError(
            f"--set rand_augment: found {recipe.rand_augment!r}, must be null or words of timm's such as "
            "rand-m9-mstd0.5-inc1"
        )
    if recipe.mixes and recipe.batch_size % 2:
        raise UserError(f"--set batch_size: {recipe.batch_size} is odd; mixup and cutmix mix pairs of images")


def _published(name: RecipeName, depth: int) -> dict[str, Any]:
    if name == "small":
        return dict(SMALL)
    by_depth = MAE_BY_DEPTH[max(least for least in MAE_BY_DEPTH if depth >= least)]
    # The paper is silent on epochs, batch, augmentation and layer decay, "similar to" MAE: those are MAE's.
    return {**MAE, **by_depth, **(PAPER if name == "paper" else {})}


def _parse(settings: Sequence[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign or not key:
            raise UserError(f"--set {setting}: a setting is key=value, such as layer_decay=0.75")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--set {setting}: {text} cannot be read as a value") from error
        given[key.strip()] = value
    return given


def _format(mistake: Any) -> str:
    key = mistake.keys[0]
    hint = f" (did you mean {mistake.suggestion!r}?)" if mistake.suggestion else ""
    return f"--set {key}: {mistake.message}{hint}" if key else f"--set: {mistake.message}{hint}"
