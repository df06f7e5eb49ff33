"""Pictures of segmentations next to the truth: the best images, the worst, and fixed ones."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image, ImageDraw
from torch import Tensor

from perceptual_mae.images import Size
from perceptual_mae.transfer.loading import in_order
from perceptual_mae.transfer.pictures import best_and_worst, framed, palette
from perceptual_mae.transfer.segmentation.data import IGNORED, SegmentationData
from perceptual_mae.transfer.segmentation.inference import Inference, Scored, one_image, predict
from perceptual_mae.transfer.segmentation.network import Segmenter
from perceptual_mae.transfer.transforms import fitted
from perceptual_mae.visualization.image_grid import sheet

LARGEST: Size = (240, 320)
"""Into which each picture fits."""
IGNORED_COLOR = (0, 0, 0)
LEGEND = 30
"""Of so many classes at most the page has a legend."""
SQUARE, ENTRY = 12, 120


def colored(classes: Tensor, colors: Tensor) -> Tensor:
    """Return classes (H, W) as an image, uint8 (3, H, W); what is ignored is black."""
    table = torch.zeros(256, 3, dtype=torch.uint8)
    table[: len(colors)] = colors
    table[IGNORED] = torch.tensor(IGNORED_COLOR, dtype=torch.uint8)
    return table[classes.long().cpu()].permute(2, 0, 1)


def segmentation_page(
    network: Segmenter,
    data: SegmentationData,
    inference: Inference,
    accelerator: Accelerator,
    scored: Scored,
    count: int,
) -> Image.Image:
    """Return the sheet of image, truth, prediction and what is wrong, with each image's mIoU; a legend below."""
    chosen = best_and_worst(scored.per_image, count)
    colors = palette(len(data.classes))
    rows: dict[str, list[Tensor]] = {name: [] for name in ("image", "truth", "prediction", "wrong")}
    notes = []
    batches = in_order(data, inference.prepare, one_image, indices=[index for _, index in chosen], batch_size=1)
    for (what, index), batch in zip(chosen, batches, strict=True):
        predicted, truth = predict(network, batch, inference, accelerator)
        wrong = (predicted != truth) & (truth != IGNORED)
        views = (
            batch.images[0],
            colored(truth[0], colors),
            colored(predicted[0], colors),
            (255 * wrong[0].cpu().to(torch.uint8)).expand(3, -1, -1),
        )
        for name, view in zip(rows, views, strict=True):
            rows[name].append(framed(_scaled(view), LARGEST))
        notes.append(f"{what}\n{data.name(index)[:20]}\nmIoU {100 * scored.per_image[index]:.1f} %")
    page = sheet({name: torch.stack(views).float() / 255 for name, views in rows.items()}, notes)
    return with_legend(page, data.classes, colors) if len(data.classes) <= LEGEND else page


def with_legend(page: Image.Image, classes: Sequence[str], colors: Tensor) -> Image.Image:
    """Return the page with the classes' colours below."""
    names = [*classes, "not counted"]
    shades = [*map(tuple, colors.tolist()), IGNORED_COLOR]
    a_row = max(1, page.width // ENTRY)
    lines = -(-len(names) // a_row)
    whole = Image.new("RGB", (page.width, page.height + (lines + 1) * (SQUARE + 6)), "white")
    whole.paste(page, (0, 0))
    draw = ImageDraw.Draw(whole)
    for place, (name, shade) in enumerate(zip(names, shades, strict=True)):
        x, y = place % a_row * ENTRY + 4, page.height + (place // a_row) * (SQUARE + 6) + 6
        draw.rectangle((x, y, x + SQUARE, y + SQUARE), fill=shade)
        draw.text((x + SQUARE + 4, y), name[:16], fill="black")
    return whole


def _scaled(view: Tensor) -> Tensor:
    """Return a picture uint8 (3, h, w) scaled until it just fits into the largest size."""
    size = fitted((view.shape[-2], view.shape[-1]), LARGEST)
    return F.interpolate(view[None].float(), size=size, mode="nearest")[0].round().to(torch.uint8)
