"""What stands beside every score of a representation: whose weights, which images, prepared how."""

from typing import Any

from accelerate import Accelerator

from perceptual_mae.evaluation.labelled_data import LabelledData
from perceptual_mae.evaluation.representation.features import fingerprint
from perceptual_mae.generator.encoder import Encoder
from perceptual_mae.run.run import Run


def describe(run: Run, encoder: Encoder, data: LabelledData, accelerator: Accelerator, *, ema: bool) -> dict[str, Any]:
    """Return the facts that make a score repeatable, for its JSON file."""
    height, width = data.transform.size
    return {
        "run": run.path.name,
        "step": run.step,
        "ema": ema,
        "encoder_sha256": fingerprint(encoder),
        "encoder_tensors": {"loaded": len(encoder.state_dict()), "missing": 0},  # loading is strict, or stops
        "precision": accelerator.mixed_precision,
        "data": data.name,
        "split": data.split,
        "train_images": len(data.train),
        "test_images": len(data.test),
        "limit": data.limit,
        "test_limit": data.test_limit,
        "classes": data.num_classes,
        "transform": {"image_size": [height, width], "resize": data.transform.resize, "crop": "center"},
    }
