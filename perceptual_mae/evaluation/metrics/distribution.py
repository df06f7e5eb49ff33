"""FID, KID and Inception Score of sets of images against a reference, through one network or several.

The reference of reconstructions is their originals. The score of the reference is reported, too: the distance of one
half of it to the other, and its own Inception Score, which reconstructions come up to at best.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.accumulators import Gather, ReconstructionBatch
from perceptual_mae.evaluation.feature_networks import FeatureNetwork
from perceptual_mae.evaluation.feature_networks.feature_network import CLEAN_RESIZE
from perceptual_mae.evaluation.feature_networks.parsing import open_all
from perceptual_mae.evaluation.metrics.frechet import Gaussian, fit_gaussian, frechet_distance
from perceptual_mae.evaluation.metrics.inception_score import FEWEST_IMAGES, SPLITS, inception_score
from perceptual_mae.evaluation.metrics.kernel_distance import KernelDistance, kernel_distance
from perceptual_mae.evaluation.metrics.protocol import Setting, UnavailableError
from perceptual_mae.seeding import stream

DEFAULT = "inception"
IMAGES_AT_ONCE = 64
NOT_FINITE = "the network returns values that are not finite; check its file, and the mean and std it expects"


def prepare(setting: Setting, names: Sequence[str]) -> "Distribution":
    """Open the networks of `setting.features` (default: Inception) and return what computes `names` through each.

    Where only the default is wanted and its file is not there, all names are unavailable. Raises UserError for a
    network that was asked for and cannot be had, or that takes images as they are where these have several sizes.
    """
    if setting.channels not in (1, 3):
        raise UnavailableError(f"looks at images of 1 or 3 channels, and these have {setting.channels}")
    if not setting.features:
        try:
            setting.find_weights(DEFAULT)
        except UnavailableError as reason:
            accumulator = Distribution([], names, setting)
            accumulator.unavailable = dict.fromkeys((f"{name}[{DEFAULT}]" for name in names), str(reason))
            return accumulator
    features = setting.features or (DEFAULT,)
    networks = open_all(features, setting.size, setting.device, trust_code=setting.trust_code)
    if setting.mixed_sizes:
        networks = [_of_mixed_sizes(network) for network in networks]
    return Distribution(networks, names, setting)


def _of_mixed_sizes(network: FeatureNetwork) -> FeatureNetwork:
    """Return a network whose metadata say that it resizes images; UserError where it does not."""
    if network.size is None:
        raise UserError(
            f"--features: {network.name} takes images as they are, and these have several sizes; give it one, as in "
            "FILE,size=224, or give all images one with --size"
        )
    return replace(network, metadata=network.metadata | {"resize": CLEAN_RESIZE})


class Distribution:
    """Keeps the features of all images, in float32 on the CPU, and nothing else of them.

    `unavailable` says by key (such as fid[inception]) what cannot be had of so many images, and why.
    """

    def __init__(self, networks: Sequence[FeatureNetwork], names: Sequence[str], setting: Setting) -> None:
        self.networks, self.names, self.setting = tuple(networks), tuple(names), setting
        self.unavailable = {
            f"{name}[{network.name}]": reason
            for network in self.networks
            for name in self.names
            if (reason := why_not(name, network.metadata, setting.num_images))
        }
        self._indices: dict[str, list[Tensor]] = {}
        self._features: dict[tuple[str, str], list[Tensor]] = {}
        self._probabilities: dict[tuple[str, str], list[Tensor]] = {}

    def update(self, batch: ReconstructionBatch) -> None:
        """Extract features of a batch of originals and both reconstructions."""
        for source in self.setting.sets:
            self.add(source, batch.indices, getattr(batch, source))

    def add(self, source: str, indices: Tensor, images: Tensor) -> None:
        """Extract features of images (B, C, H, W) in [0, 1] of a set, whose places in it (B,) are on the CPU."""
        if self.networks and len(indices):
            self._indices.setdefault(source, []).append(indices)
            for network in self.networks:
                self._extract(network, source, images)

    def compute(self, gather: Gather) -> Mapping[str, Any]:
        """Return scores by source, the networks' metadata, and why scores are unavailable after all."""
        report: dict[str, Any] = {"scores": {}, "feature_networks": {}, "unavailable": {}}
        for network in self.networks:
            features = self._gathered(gather, self._features, network.name)
            probabilities = self._gathered(gather, self._probabilities, network.name)
            numbers = [max(len(features[source]), len(probabilities[source])) for source in self.setting.sets]
            if not any(numbers):
                continue  # another process holds them
            num_images = min(numbers)
            counts = num_images if max(numbers) == num_images else dict(zip(self.setting.sets, numbers, strict=True))
            metadata = {**network.metadata, "num_images": counts, "reference": self.setting.reference}
            finite = all(bool(rows.isfinite().all()) for held in (features, probabilities) for rows in held.values())
            for name in self.names:
                key = f"{name}[{network.name}]"
                if reason := why_not(name, network.metadata, num_images) if finite else NOT_FINITE:
                    report["unavailable"][key] = reason
                    continue
                scores, metadata[name] = COMPUTED[name](probabilities if name == "is" else features, self.setting)
                for source, value in scores.items():
                    report["scores"].setdefault(source, {})[key] = value
            report["feature_networks"][network.name] = metadata
        return {key: value for key, value in report.items() if value}

    def _extract(self, network: FeatureNetwork, source: str, images: Tensor) -> None:
        key = (network.name, source)
        for part in torch.split(images, IMAGES_AT_ONCE):
            features, probabilities = network.extract(part)
            if {"fid", "kid"} & {*self.names}:
                self._features.setdefault(key, []).append(features.cpu())
            if "is" in self.names and probabilities is not None:
                self._probabilities.setdefault(key, []).append(probabilities.cpu())

    def _gathered(self, gather: Gather, held: dict[tuple[str, str], list[Tensor]], network: str) -> dict[str, Tensor]:
        """Return each subject's rows (N, D) in the order of the data set, each image once, on the main process."""
        gathered = {}
        for source in self.setting.sets:
            indices = torch.cat(self._indices.get(source) or [torch.empty(0, dtype=torch.int64)])
            own = held.pop((network, source), None)  # the parts are as large as the whole
            rows = torch.cat(own) if own else torch.empty(0)
            gathered[source] = gather.rows(indices[: len(rows)], rows)[1]
        return gathered


def why_not(name: str, metadata: Mapping[str, Any], num_images: int) -> str | None:
    """Return why a score cannot be had of so many images through such a network, or None."""
    dim, classes = metadata["dim"], metadata["classes"]
    if name == "fid" and num_images <= dim:
        return (
            f"{num_images} images are too few for the covariance of {dim} features; read kid, which needs none, or "
            f"score more than {dim} images"
        )
    if name == "is" and classes is None:
        return "the network returns features and no classes; read fid or kid, or give a classifier"
    fewest = FEWEST_IMAGES if name == "is" else 4  # two halves of two
    return f"{num_images} images are too few; score {fewest} or more" if num_images < fewest else None


def halves(rows: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return two halves of equal size, of a shuffle that depends on the seed and the number of rows alone."""
    order = torch.randperm(len(rows), generator=stream("halves", seed, len(rows)))
    size = len(rows) // 2
    return rows[order[:size]], rows[order[size : 2 * size]]


Computed = tuple[dict[str, float | None], dict[str, Any]]
"""A score by source, and its metadata."""


def _fid(features: Mapping[str, Tensor], setting: Setting) -> Computed:
    *compared, reference = setting.sets
    fitted: Gaussian = fit_gaussian(features[reference])
    scores: dict[str, float | None] = {
        source: frechet_distance(fit_gaussian(features[source]), fitted) for source in compared
    }
    first, second = halves(features[reference], setting.seed)
    enough = len(first) > features[reference].shape[1]
    scores[reference] = frechet_distance(fit_gaussian(first), fit_gaussian(second)) if enough else None
    return scores, {reference: f"one half against the other, {len(first)} images each" if enough else None}


def _kid(features: Mapping[str, Tensor], setting: Setting) -> Computed:
    *compared, reference = setting.sets
    on = setting.device if setting.device.type == "cuda" else torch.device("cpu")

    def distance(first: Tensor, second: Tensor) -> KernelDistance:
        return kernel_distance(first.to(on), second.to(on), seed=setting.seed)

    distances = {source: distance(features[source], features[reference]) for source in compared}
    distances[reference] = distance(*halves(features[reference], setting.seed))
    metadata = {
        "seed": setting.seed,
        "subsets": {source: one.subsets for source, one in distances.items()},
        "subset_size": {source: one.subset_size for source, one in distances.items()},
        "deviation": {source: one.std for source, one in distances.items()},
        reference: f"one half against the other, {len(features[reference]) // 2} images each",
    }
    return {source: one.mean for source, one in distances.items()}, metadata


def _is(probabilities: Mapping[str, Tensor], setting: Setting) -> Computed:
    scores = {source: inception_score(rows, seed=setting.seed) for source, rows in probabilities.items()}
    metadata = {"splits": SPLITS, "seed": setting.seed, "deviation": {source: one[1] for source, one in scores.items()}}
    return {source: one[0] for source, one in scores.items()}, metadata


COMPUTED = {"fid": _fid, "kid": _kid, "is": _is}
