"""JPEGs decoded on the device: workers read the files, the training process decodes those of a batch at once.

On a GPU torchvision decodes with nvJPEG, whose pixels differ from libjpeg's by a few levels of 255. What is no JPEG of
RGB or grey pixels, or turns out broken, is read as without a device: by a worker, or the training process.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from perceptual_mae.data.batch import Batch, collate
from perceptual_mae.data.dataset import ImageDataset, has_files, stored_at
from perceptual_mae.data.decoding import MAX_PIXELS, UnreadableImageError, decode_jpegs, read_jpeg
from perceptual_mae.data.orientation import turn_upright
from perceptual_mae.data.subsets import label_of
from perceptual_mae.data.workers import Reader, Samples
from perceptual_mae.errors import UserError
from perceptual_mae.seeding import stream


@dataclass(frozen=True)
class EncodedBatch:
    """A micro-batch as its files: JPEGs as they are stored, all else decoded.

    content: uint8 (N,), the JPEGs one after the other. lengths: bytes of each image's JPEG, 0 where a worker decoded
    it; orientations: of EXIF, 1 to 8; labels: class index or -1; all of the micro-batch's length. decoded: the images
    without a JPEG, in their order, a batch each.
    """

    samples: Samples
    content: Tensor
    lengths: tuple[int, ...]
    orientations: tuple[int, ...]
    labels: tuple[int, ...]
    decoded: tuple[Batch, ...]


class EncodedReader(Reader):
    """Reads the files of a micro-batch; runs in the workers. `reader` reads what is no JPEG, one image at a time.

    Raises UserError for a data set whose images are in no files.
    """

    def __init__(self, reader: Reader, dataset: ImageDataset) -> None:
        super().__init__()
        if not has_files(dataset):
            raise UserError("data.decode is device, but the images of this data set are no files; set it to workers")
        self.dataset = dataset
        self._reader = reader

    def __getitem__(self, samples: Samples) -> EncodedBatch:
        self._reader.notes = self.notes
        contents, lengths, orientations, labels, decoded = list[bytes](), list[int](), list[int](), list[int](), []
        for sample in samples:
            self.notes.note(sample[1])
            content, orientation = self._jpeg(sample[1])
            lengths.append(len(content))
            orientations.append(orientation)
            labels.append(label_of(self.dataset, sample[1]) if content else -1)
            if content:
                contents.append(content)
            else:
                decoded.append(self._reader[[sample]])
        stored = torch.frombuffer(bytearray(b"".join(contents)), dtype=torch.uint8) if contents else torch.empty(0)
        return EncodedBatch(samples, stored, tuple(lengths), tuple(orientations), tuple(labels), tuple(decoded))

    def _jpeg(self, index: int) -> tuple[bytes, int]:
        """Return an image's JPEG and its orientation; nothing where it is none, or cannot be read."""
        try:
            source = stored_at(self.dataset, index)
            limit: int = getattr(self.dataset, "max_pixels", MAX_PIXELS)
            return (b"", 1) if source is None else read_jpeg(source, max_pixels=limit)
        except UnreadableImageError:  # the reader says so, and finds another image
            return b"", 1


class DeviceDecoder:
    """Turns the files of a micro-batch into its images on `device`; an image that fails is read again by `reader`.

    transform: as `TrainLoader`'s; its draws are those of a worker.
    """

    def __init__(
        self,
        reader: Reader,
        transform: Callable[[Tensor, torch.Generator], Tensor],
        seed: int,
        device: torch.device,
    ) -> None:
        self._reader, self._transform, self._seed, self._device = reader, transform, seed, device

    def __call__(self, encoded: EncodedBatch) -> Batch:
        """Return the batch, with uint8 images (B, 3, H, W) on the device."""
        jpegs = iter(decode_jpegs(_split(encoded.content, encoded.lengths), self._device))
        ready = iter(encoded.decoded)
        images, labels, unreadable = list[Tensor](), list[int](), list[tuple[str, str]]()
        for place, sample in enumerate(encoded.samples):
            image = next(jpegs) if encoded.lengths[place] else None
            if image is not None:
                upright = turn_upright(image, encoded.orientations[place])
                images.append(self._transform(upright, stream("augment", self._seed, *sample)))
                labels.append(encoded.labels[place])
                continue
            read: Batch = self._reader[[sample]] if encoded.lengths[place] else next(ready)
            unreadable += read.unreadable
            if not len(read):  # far too many are broken: whoever asked for the batch stops at this report
                return collate([], [], [], unreadable)
            images.append(read.images[0].to(self._device))
            labels.append(int(read.labels[0]))
        return collate(images, labels, encoded.samples, unreadable)


def _split(content: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """Return the files of `content`, one for each length above 0."""
    stored = [length for length in lengths if length]
    return list(torch.split(content, stored)) if stored else []
