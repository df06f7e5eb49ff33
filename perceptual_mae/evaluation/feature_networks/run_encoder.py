"""The encoder of a run as feature network: what a distribution looks like to what we trained ourselves."""

from pathlib import Path

from torch import Tensor, nn

from perceptual_mae.evaluation.feature_networks.feature_network import FeatureNetwork
from perceptual_mae.evaluation.representation.features import fingerprint
from perceptual_mae.generator.encoder import Encoder
from perceptual_mae.run.run import Run


def run_encoder(words: str, *, ema: bool | None = None) -> FeatureNetwork:
    """Return the encoder of a run folder or checkpoint; the features are its patch tokens' mean, after its last norm.

    Images are resized to the run's size. It has no classes.
    """
    run = Run(Path(words).expanduser())
    generator = run.generator(ema=ema).requires_grad_(False)
    metadata = {"kind": "run", "step": run.step, "encoder_sha256": fingerprint(generator.encoder)}
    module = MeanTokens(generator.encoder, generator.channels)
    return FeatureNetwork(f"run:{run.path.absolute().name}", module, generator.image_size, metadata)


class MeanTokens(nn.Module):
    """Patch tokens (B, L, D) of pixels (B, 3, H, W) from 0 to 255; greyscale encoders see the mean of the channels."""

    def __init__(self, encoder: Encoder, channels: int) -> None:
        super().__init__()
        self.encoder, self.channels = encoder, channels

    def forward(self, pixels: Tensor) -> Tensor:
        images = pixels / 255
        tokens: Tensor = self.encoder(images if self.channels == 3 else images.mean(1, keepdim=True))
        return tokens[:, 1:]
