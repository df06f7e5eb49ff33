"""What the paper published for its methods (Tukra, Hoffman, Chatfield, Tables 1 to 4), for comparison with our runs.

ImageNet at 224 px; ViT-B unless the column says L. Nothing here imports torch.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One method's numbers as printed; None where the tables have no entry."""

    l1: float | None = None
    psnr: float | None = None
    """In no known unit: L1 of 0.25 on [0, 1] is at least 6 dB."""
    ssim: float | None = None
    inception_score: float | None = None
    fid: float | None = None
    probe_b: float | None = None
    """Top-1 accuracy in per cent, as in the next two."""
    finetune_b: float | None = None
    finetune_l: float | None = None
    box: float | None = None
    """COCO's average precision in per cent, as in the next one."""
    mask: float | None = None
    miou: float | None = None
    """On ADE20K, in per cent."""
    epoch_time: float | None = None
    """Relative to StyleGANv2-ADA-P."""
    parameters: float | None = None
    """Of the generator, in millions."""


PAPER: dict[str, Published] = {
    "mse": Published(
        *(0.25, 0.38, 0.76, 6.33, 42.7), *(67.8, 83.6, 85.9), *(50.3, 44.9, 48.1), epoch_time=0.23, parameters=113
    ),
    "ms_ssim_l1": Published(*(0.21, 0.41, 0.82, 8.01, 31.6), *(71.2, 84.1, 86.3), *(50.8, 45.1, 48.8)),
    "ls_gan_p": Published(
        *(0.16, 0.53, 0.92, 16.2, 28.2), *(72.5, 84.5, 86.5), *(51.4, 45.4, 49.2), epoch_time=0.54, parameters=113
    ),
    "msg_gan_p": Published(*(0.11, 0.55, 0.94, 32.1, 19.0), *(75.6, 85.3, 87.2), *(52.3, 45.8, 49.7)),
    "stylegan2_ada_p": Published(
        *(0.06, 0.58, 0.91, 36.8, 10.3), *(78.1, 86.2, 88.1), *(53.5, 46.1, 50.4), epoch_time=1.0, parameters=119
    ),
    "dvae_p": Published(probe_b=79.8, finetune_b=86.9, finetune_l=88.6, box=53.9, mask=46.4, miou=50.9),
    "ls_gan": Published(finetune_b=83.3, finetune_l=85.3),
    "msg_gan": Published(finetune_b=84.7, finetune_l=86.5),
    "mae_msg_gan_p": Published(finetune_b=83.2, finetune_l=85.6, box=50.9, mask=45.9, miou=49.3),
    "mae_stylegan2_ada_p": Published(finetune_b=84.5, finetune_l=86.2, box=51.8, mask=45.5, miou=49.1),
}
"""By the name of the shipped method, in the order of the paper's tables. Methods that are not here are ours."""


@dataclass(frozen=True)
class Column:
    """How a number of `Published` is headed and printed."""

    field: str
    heading: str
    spec: str = ".1f"

    def show(self, published: Published | None) -> str:
        """Return the method's number as the paper prints it, or a dash."""
        value = getattr(published, self.field, None)
        return "-" if value is None else format(value, self.spec)


RECONSTRUCTION = (
    Column("l1", "L1", ".2f"),
    Column("psnr", "PSNR", ".2f"),
    Column("ssim", "SSIM", ".2f"),
    Column("inception_score", "IS", "#.3g"),
    Column("fid", "FID"),
    Column("epoch_time", "time", ".2f"),
    Column("parameters", "params", ".0f"),
)
"""Tables 1 and 4."""

TRANSFER = (
    Column("probe_b", "LP B"),
    Column("finetune_b", "FT B"),
    Column("finetune_l", "FT L"),
    Column("box", "box"),
    Column("mask", "mask"),
    Column("miou", "mIoU"),
)
"""Tables 2 and 3."""

FOOTNOTE = (
    "The numbers are the paper's, of ImageNet at 224 px; no run on other data or under another protocol compares with "
    "them. L1 to FID: validation images (Table 1; its PSNR cannot be dB, as an L1 of 0.25 on [0, 1] is at least 6 dB). "
    "time: an epoch, StyleGANv2-ADA-P = 1; params: millions (Table 4). LP, FT: top-1 accuracy of a linear probe and of "
    "fine-tuning, ViT-B and ViT-L; box, mask: AP on COCO; mIoU: on ADE20K (Tables 2 and 3)."
)
"""What the numbers are, for whoever prints them."""
