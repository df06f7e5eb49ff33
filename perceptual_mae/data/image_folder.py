"""A folder of image files, flat or with class folders, split by subfolders or by seeded shares."""

from functools import partial
from pathlib import Path

from perceptual_mae.data.dataset import MAX_UNREADABLE, MaxPixels, Seed
from perceptual_mae.data.decoding import MAX_PIXELS
from perceptual_mae.data.image_tree import ImageTree, class_names
from perceptual_mae.data.splits import FolderSplit


class ImageFolder(FolderSplit[ImageTree]):
    """Image files in a folder: split by its subfolders where there are any, else by seeded shares.

    Links are followed and class folders give labels (see `ImageTree`). "train" is the folder train or training, else
    everything but the folders of the other splits. "val" and "test" are folders with a usual name (val, valid,
    validation; test, testing), else a seeded share of the training images, which "train" then lacks. Two options may
    name the same folder (`test: val` where there are only train and val).

    Options:
        root: folder of the images [none]
        val: folder of split "val", absolute or relative to root; null looks for a usual name [ours]
        test: folder of split "test", absolute or relative to root; null looks for a usual name [ours]
        holdout: share in [0, 0.5) of the training images for each split without a folder; null is 0.05 where
            root has no split folder, else 0 [ours]
        split_fractions: shares of train, val and test, 1 in all, drawn in every class of a root without split
            folders; excludes holdout [ours]
        seed: seed of the shares of holdout and split_fractions [ours]
        max_pixels: width x height beyond which a file's header counts it as unreadable [Pillow]
        max_unreadable: share in [0, 1) of a split's images that may be unreadable; more end the run [ours]
    """

    photographs = True
    """Images of any size, of which held-out ones are resized before the crop where nothing is said."""

    def __init__(
        self,
        split: str,
        *,
        root: str,
        val: str | None = None,
        test: str | None = None,
        holdout: float | None = None,
        split_fractions: tuple[float, float, float] | None = None,
        seed: Seed = 0,
        max_pixels: MaxPixels = MAX_PIXELS,
        max_unreadable: float = MAX_UNREADABLE,
    ) -> None:
        super().__init__(
            split,
            partial(ImageTree, max_pixels=max_pixels),
            class_names,
            root=root,
            val=val,
            test=test,
            holdout=holdout,
            split_fractions=split_fractions,
            seed=seed,
            max_pixels=max_pixels,
            max_unreadable=max_unreadable,
        )
        self.listing, self.stray_image = self.images.listing, self.images.stray_image

    def file_path(self, index: int) -> Path:
        """Return the path of an image's file."""
        return self.images.file_path(self.place(index))
