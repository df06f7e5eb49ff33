"""An encoder with a head that names classes: what fine-tuning trains, and how it is saved and opened again."""

import json
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file
from torch import Tensor, nn

from perceptual_mae.config import build
from perceptual_mae.config.parsing import RunConfig, to_yaml
from perceptual_mae.data.transforms import EvaluationTransform
from perceptual_mae.errors import UserError
from perceptual_mae.files import write_atomically, write_json
from perceptual_mae.generator.encoder import Encoder
from perceptual_mae.generator.vit import LayerNorm
from perceptual_mae.run.checkpoint import write_tensors
from perceptual_mae.run.folder import read_config
from perceptual_mae.seeding import stream

Pool = Literal["class_token", "mean"]
HEAD_STD = 2e-5
"""MAE: a head that starts almost at zero leaves the encoder alone until it has learnt something."""
METADATA = "classifier.json"
WEIGHTS = "classifier.safetensors"


class Classifier(nn.Module):
    """Logits (B, classes) of whole images (B, C, H, W) in [0, 1].

    "mean" averages the patch tokens of the last block and normalises with a LayerNorm of its own, in place of the
    encoder's final norm (MAE); "class_token" reads the class token after that norm (ViT). The encoder is taken over,
    not copied. `drop_path_masks` (B, blocks, 2): see `Block`.
    """

    classes: tuple[str, ...] = ()
    transform: EvaluationTransform
    """Names by class index, and how a uint8 image (3, H, W) is prepared; set by `open_classifier`."""

    def __init__(self, encoder: Encoder, num_classes: int, *, pool: Pool = "mean", seed: int = 0) -> None:
        super().__init__()
        self.pool = pool
        self.encoder = encoder
        self.norm: nn.Module = nn.Identity()
        if pool == "mean":
            self.norm = LayerNorm(encoder.width)
            encoder.add_module("norm", nn.Identity())  # it would be a parameter without a gradient
        self.head = nn.Linear(encoder.width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_STD, generator=stream("classifier head", seed))
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, drop_path_masks: Tensor | None = None) -> Tensor:
        tokens = self.encoder(images, drop_path_masks)
        pooled = tokens[:, 0] if self.pool == "class_token" else tokens[:, 1:].mean(1)
        logits: Tensor = self.head(self.norm(pooled))
        return logits

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's description of the layers: 0 the embeddings, 1 to K the blocks, K + 1 all above (MAE)."""
        return {
            "stem": r"^encoder\.(?:cls_token|pos_embed|patch_embed)",
            "blocks": [(r"^encoder\.blocks\.(\d+)", None)],
        }


def save_classifier(
    folder: Path, classifier: Classifier, config: RunConfig, classes: tuple[str, ...], metadata: dict[str, Any]
) -> None:
    """Write weights (safetensors), the run's configuration and the metadata: what `open_classifier` needs.

    `metadata["transform"]` says how images are prepared, as provenance does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, classifier.state_dict())
    write_atomically(folder / "config.yaml", to_yaml(config))
    write_json(folder / METADATA, {"pool": classifier.pool, "classes": list(classes), **metadata})


def open_classifier(folder: str | Path) -> Classifier:
    """Return a fine-tuned network from the folder that `pmae finetune --save` wrote, in evaluation mode.

    `classes` has the names by class index; `transform` prepares a uint8 image (3, H, W) of any size. Raises UserError
    where the folder is no such one, or a tensor is missing.
    """
    folder = Path(folder)
    try:
        metadata = json.loads((folder / METADATA).read_text())
        state = load_file(folder / WEIGHTS)
    except (OSError, ValueError) as failure:
        raise UserError(
            f"{folder}: holds no fine-tuned network ({failure}); give a folder that pmae finetune --save wrote"
        ) from failure
    config = read_config(folder)
    classifier = Classifier(
        build.build_generator(config.generator, config.data.image, config.training.seed).encoder,
        len(metadata["classes"]),
        pool=metadata["pool"],
    )
    try:
        classifier.load_state_dict(state)
    except RuntimeError as mismatch:
        raise UserError(f"{folder / WEIGHTS}: does not fit the config.yaml next to it: {mismatch}") from mismatch
    classifier.classes = tuple(metadata["classes"])
    height, width = metadata["transform"]["image_size"]
    classifier.transform = EvaluationTransform((height, width), metadata["transform"]["resize"])
    return classifier.eval()


def fresh_encoder(config: RunConfig, seed: int) -> Encoder:
    """Return a run's encoder before any training, with the weights that pre-training from this seed starts at."""
    return build.build_generator(config.generator, config.data.image, seed).encoder
