"""The model card of an export: what was trained how, on what, with which scores, and how to load it."""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perceptual_mae.config.layers import to_yaml
from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.interop.exported import Export, Proof
from perceptual_mae.run import checkpoint
from perceptual_mae.run.run import Run

MAE_LICENSE = "cc-by-nc-4.0"
"""Of the weights that facebookresearch/mae published; what is trained from them inherits it."""
MAE_FORMS = ("facebookresearch/mae", "transformers", "diffusers")

HUB_DATASETS = ("cifar10", "stl10")
"""Kinds of data that are called so elsewhere, too."""

LOADING = {
    "timm": """import timm, torch
model = timm.create_model("local-dir:{folder}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
images = torch.rand(2, {channels}, {height}, {width})  # in [0, 1]; `transform` does this for a file
mean, std = (torch.tensor(model.pretrained_cfg[name]).view(-1, 1, 1) for name in ("mean", "std"))
tokens = model.forward_features((images - mean) / std)  # (2, {tokens}, {dim}), class token first""",
    "transformers": """import torch
from transformers import ViTImageProcessor, ViTModel
processor = ViTImageProcessor.from_pretrained("{folder}")  # for files: rescales and normalises
model = ViTModel.from_pretrained("{folder}", add_pooling_layer=False).eval()
images = torch.rand(2, {channels}, {height}, {width})  # in [0, 1]
mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (processor.image_mean, processor.image_std))
tokens = model((images - mean) / std).last_hidden_state  # (2, {tokens}, {dim}), class token first""",
    "onnx": """import numpy, onnxruntime
session = onnxruntime.InferenceSession("{folder}/encoder.onnx")
images = numpy.random.rand(2, {channels}, {height}, {width}).astype("float32")  # in [0, 1], any batch
(tokens,) = session.run(None, {{"images": images}})  # (2, {tokens}, {dim}), class token first""",
    "torchscript": """import torch
model = torch.jit.load("{folder}/encoder.pt")
images = torch.rand(2, {channels}, {height}, {width})  # in [0, 1], any batch
tokens = model(images)  # (2, {tokens}, {dim}), class token first""",
    "safetensors": """from safetensors.torch import load_file
tensors = load_file("{folder}/model.safetensors")  # by {names}
kernel = tensors["{prefix}patch_embed.proj.weight"]  # ({dim}, {channels}, {patch}, {patch})""",
}
"""How each form is loaded, in a process that need not have this package."""

NOTES = {
    "timm": [
        'The encoder alone. With `global_pool="avg"` timm wants an `fc_norm` that no pre-trained encoder has: pool the '
        "patch tokens of `forward_features` instead.",
    ],
    "transformers": [
        "`ViTModel` gives features of whole images; `ViTMAEModel` hides patches at inference, too, and shuffles the "
        "rest, unless it is given `mask_ratio=0` and `noise` in rising order.",
        "`layer_norm_eps` stands in config.json; the default of transformers is another one.",
        "Do not save it again with transformers 5: its names of a decoder are not read by 4.x.",
        "The image processor squashes images that are not square.",
    ],
    "onnx": [
        "Any batch; height and width are fixed: export again for another size. Images are normalised in the graph."
    ],
    "torchscript": ["Any batch; height and width are fixed. Images are normalised in the graph."],
    "safetensors": ["`pmae import` and `generator.init_from` read this folder; generator.json has all options."],
}


@dataclass(frozen=True)
class CardOptions:
    """What a card says that no run knows: the licence, the weights that it was trained from, the name of the data."""

    license: str | None = None
    base_model: str | None = None
    datasets: tuple[str, ...] = ()


def model_card(run: Run, form: str, export: Export, proof: Proof, options: CardOptions) -> str:
    """Return the card as Markdown with its YAML header, for README.md."""
    config, environment = run.config, _read(run.path / "environment.json")
    origin = environment.get("started_from")
    inherits = options.license is None and inherits_mae_license(origin)
    license_name = MAE_LICENSE if inherits else options.license
    header: dict[str, Any] = {"license": license_name} if license_name else {}
    library = {"timm": "timm", "transformers": "transformers", "onnx": "onnx"}
    header |= {"library_name": library[form]} if form in library else {}
    header |= {
        "pipeline_tag": "image-feature-extraction",
        "tags": ["masked-autoencoder", "vision-transformer", "self-supervised", "perceptual-mae"],
    }
    datasets = list(options.datasets) or ([config.data.kind] if config.data.kind in HUB_DATASETS else [])
    header |= {"datasets": datasets} if datasets else {}
    header |= {"base_model": options.base_model} if options.base_model else {}
    scores = list(_scores(run))
    header |= {"metrics": sorted({name for name, _, _ in scores})} if scores else {}
    lines = ["---", to_yaml(header).rstrip(), "---", "", f"# {run.path.name}", ""]
    lines += [_architecture(export), "", "## Use", "", "```python", loading(form, export), "```", ""]
    lines += [f"- {note}" for note in [*NOTES[form], *_ranges(export)]]
    lines += ["", "## Training", "", *_training(run, config, environment, origin)]
    if inherits:
        lines.append(
            f"- Trained from weights of others: their licence is inherited. facebookresearch/mae published its weights "
            f"under {MAE_LICENSE}."
        )
    lines += [
        "",
        "## Scores",
        "",
        *(_table(scores) or ["None were taken: `pmae evaluate` and `pmae probe` write them."]),
    ]
    lines += ["", "## Export", "", f"- {proof}", "", "## Limits", ""]
    lines += ["Features are of the training images' kind; nothing here was checked for bias or for fitness to any use."]
    return "\n".join(lines) + "\n"


def loading(form: str, export: Export, folder: str = ".") -> str:
    """Return the lines that load an export; `folder` is its place."""
    encoder, (height, width) = export.generator.encoder, export.generator.image_size
    return LOADING[form].format(
        folder=folder,
        channels=encoder.channels,
        height=height,
        width=width,
        dim=encoder.width,
        patch=encoder.patch_size,
        tokens=1 + encoder.grid[0] * encoder.grid[1],
        names="our names" if export.with_decoder else "timm's names",
        prefix="encoder." if export.with_decoder else "",
    )


def inherits_mae_license(origin: Mapping[str, Any] | None) -> bool:
    """Tell whether a run started from a file in a form that facebookresearch/mae's weights come in, at any remove."""
    if origin is None:
        return False
    if "form" in origin:
        return origin["form"] in MAE_FORMS
    folder = Path(
        str(origin.get("path", ""))
    ).parent.parent.parent  # RUN/checkpoints/step_00000000/generator.safetensors
    return inherits_mae_license(_read(folder / "environment.json").get("started_from"))


def _architecture(export: Export) -> str:
    encoder, (height, width) = export.generator.encoder, export.generator.image_size
    parts = "encoder and decoder of a masked autoencoder" if export.with_decoder else "encoder of a masked autoencoder"
    return (
        f"The {parts}: a vision transformer with {len(encoder.blocks)} blocks of width {encoder.width}, "
        f"{encoder.num_heads} heads and patches of {encoder.patch_size} pixels, for images of {height}x{width}."
    )


def _ranges(export: Export) -> Iterator[str]:
    mean, std = export.statistics
    yield f"Images in [0, 1] are normalised with mean {mean} and std {std}."
    if export.with_decoder:
        hidden = f"{export.mask_ratio:g} of the patches were hidden in training."
        predicts = (
            "normalised patches (norm_pix): in units of each patch's own std"
            if export.generator.norm_pix
            else ("normalised pixels: multiply by std and add mean for [0, 1]")
        )
        yield f"{hidden} The decoder predicts {predicts}."


def _training(
    run: Run, config: RunConfig, environment: Mapping[str, Any], origin: Mapping[str, Any] | None
) -> Iterator[str]:
    metadata = checkpoint.load_metadata(run.checkpoint)
    discriminator = config.discriminator.kind if config.discriminator is not None else "none"
    yield f"- Loss terms: {', '.join(name for name, _ in config.losses.items())}; discriminator: {discriminator}."
    if command := environment.get("command"):
        yield f"- Command: `pmae {shlex.join(map(str, command))}` (perceptual-mae {_version(environment)})"
    images = f"{metadata.get('images_seen', 0):,} images in {run.step:,} steps"
    yield f"- Seed {config.training.seed}, {images}, batches of {config.training.batch_size}; data: {config.data.kind}."
    yield f"- Masking: {config.masking.kind}, ratio {json.dumps(config.model_dump(mode='json')['masking']['ratio'])}."
    if origin is not None:
        yield f"- Started from {Path(str(origin['path'])).name} (SHA-256 {origin['sha256'][:16]}...)."


def _version(environment: Mapping[str, Any]) -> str:
    return str((environment.get("versions") or {}).get("perceptual-mae", "of unknown version"))


def _scores(run: Run) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and protocol of the scores that belong to the exported checkpoint."""
    summary = _read(run.path / "summary.json")
    if summary.get("steps") == run.step:
        protocol = (
            f"{summary.get('num_images')} images of {summary.get('split')}, masks of seed {summary.get('mask_seed')}"
        )
        for name in ("psnr", "ssim", "psnr_masked"):
            if isinstance(summary.get(name), float):
                yield name, f"{summary[name]:.4g}", protocol
    for path in sorted((run.path / "evaluation").glob("*.json")):
        report = _read(path)
        if report.get("step") != run.step:
            continue
        sums = [report.get(key) for key in ("encoder_sha256", "generator_sha256") if report.get(key)]
        images = report.get("test_images") or report.get("num_images")
        protocol = f"{path.stem}, {images} images of {report.get('split')}, weights {str(*sums[:1])[:12]}"
        extractors = {
            name: str(network.get("sha256", ""))[:12]
            for name, network in (report.get("feature_networks") or {}).items()
            if isinstance(network, Mapping)
        }
        for name, value in _numbers(report.get("scores") or {}):
            used = [f", {extractor} {sha}" for extractor, sha in extractors.items() if f"[{extractor}]" in name]
            yield name, f"{value:.4g}", protocol + "".join(used)


def _numbers(scores: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield the scores themselves: accuracies and metrics, not their seeds or settings."""
    if isinstance(scores, Mapping):
        if isinstance(scores.get("accuracy"), float):
            yield f"{name} accuracy".strip(), scores["accuracy"]
            return
        for key, value in scores.items():
            yield from _numbers(value, f"{name} {key}".strip())
    elif isinstance(scores, float):
        yield name, scores


def _table(scores: list[tuple[str, str, str]]) -> list[str]:
    if not scores:
        return []
    rows = [f"| {name} | {value} | {protocol} |" for name, value, protocol in scores]
    return ["| score | value | protocol |", "|---|---|---|", *rows]


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
