"""The section `data` of a run's configuration: where images come from and how they are prepared."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from perceptual_mae.config.from_signature import Choice
from perceptual_mae.config.training_sections import Fraction
from perceptual_mae.data.pixel_cache import CachedImages, PixelCache
from perceptual_mae.images import ImageFormat, Size

EVAL_SCALE = 256 / 224
"""MAE's, and DINO's: the shorter side of a photograph to that of the crop from its centre."""

Side = Annotated[int, Field(ge=1, le=8192)]
"""A side of an image, in pixels."""


class DataSection(Choice):
    """Where images come from and how they are cropped; sizes in pixels.

    Options:
        kind: the data set [ours]
        image_size: height and width of the images that enter the networks, one number for both [paper]
        mean: mean of each colour channel, subtracted before the encoder [MAE]
        std: standard deviation of each colour channel, divided by before the encoder [MAE]
        crop: training crops: random_resized (random place, size and aspect ratio) or center [MAE]
        crop_scale: smallest and largest share of the image's area in a random_resized crop [MAE]
        flip: probability that a training image is mirrored left to right [MAE]
        color_jitter: strength of random brightness, contrast, saturation and hue; 0 changes nothing [MAE]
        grayscale: probability that a training image loses its colours [MAE]
        eval_resize: shorter side of held-out images before the center crop; auto: 256/224 of image_size where kind is
            image_folder or shards and crops are square, else null; null: as large as the crop needs [MAE]
        workers: processes that decode training images; 0: the main process does [ours]
        cache: local folder, and its size, for the decoded training images of a data set of files: {folder, gigabytes};
            null: they are decoded whenever they are read [ours]
    """

    image_size: Side | tuple[Side, Side] = 224
    mean: tuple[Annotated[float, Field(ge=-1000, le=1000)], ...] = (0.485, 0.456, 0.406)
    std: tuple[Annotated[float, Field(ge=1e-6, le=1000)], ...] = (0.229, 0.224, 0.225)
    crop: Literal["random_resized", "center"] = "random_resized"
    crop_scale: tuple[Fraction, Fraction] = (0.2, 1.0)
    flip: Fraction = 0.5
    color_jitter: Fraction = 0.0
    grayscale: Fraction = 0.0
    eval_resize: Side | Literal["auto"] | None = "auto"
    workers: Annotated[int, Field(ge=0, le=1024)] = 2
    cache: PixelCache | None = None

    @property
    def size(self) -> Size:
        """Height and width of the images that enter the networks."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    def build(self, *positional: Any) -> Any:
        """Return the data set of a split; with a cache, its images may come from there."""
        dataset = super().build(*positional)
        return dataset if self.cache is None else CachedImages(dataset, self.cache)

    @model_validator(mode="after")
    def _settle_eval_resize(self) -> Self:
        """State what `auto` is: a run folder means the same whatever a later version makes of the word."""
        if self.eval_resize == "auto" and hasattr(self, "constructor"):
            height, width = self.size
            scales = getattr(self.constructor, "photographs", False) and height == width
            object.__setattr__(self, "eval_resize", round(height * EVAL_SCALE) if scales else None)
        return self

    @property
    def shorter_side(self) -> int | None:
        """The shorter side of held-out images before the center crop; None: as large as the crop needs."""
        return None if self.eval_resize == "auto" else self.eval_resize

    @property
    def image(self) -> ImageFormat:
        """Size, mean and deviation of the images that enter the networks."""
        return ImageFormat(self.size, self.mean, self.std)
