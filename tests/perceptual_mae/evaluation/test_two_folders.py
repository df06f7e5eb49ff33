"""Two folders of images: which pair up, and scores held against `pmae evaluate`'s own pass and other libraries."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_fidelity.metric_kid
from accelerate import Accelerator
from PIL import Image
from stand_in_inception import DIM, save_stand_in
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio
from torchmetrics.image.fid import _compute_fid

from perceptual_mae.data.image_files import ImageFiles, images_below
from perceptual_mae.data.transforms import cover_and_crop
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.accumulators import Gather, ReconstructionBatch
from perceptual_mae.evaluation.feature_networks.parsing import open_features
from perceptual_mae.evaluation.image_pairs import pair_up
from perceptual_mae.evaluation.metrics.distribution import prepare
from perceptual_mae.evaluation.metrics.protocol import Setting
from perceptual_mae.evaluation.metrics.selection import choose, find_weights
from perceptual_mae.evaluation.reconstruction.per_image import ImageScores
from perceptual_mae.evaluation.two_folders import compare_folders
from perceptual_mae.losses.ms_ssim import ssim_map

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
CPU = torch.device("cpu")
NUM_IMAGES = 24


def pixels(seed: int, size: tuple[int, int] = (32, 32)) -> np.ndarray[Any, Any]:
    """A smooth picture with some noise, uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC)).astype(float)
    return (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)


def save(folder: Path, pictures: dict[str, np.ndarray[Any, Any]]) -> Path:
    for name, picture in pictures.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return folder


def darker(picture: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (picture * 0.7).astype(np.uint8)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A has darker copies of the images of B, in another format and in another order of creation."""
    first = {f"{name % 3}/{name:02}.bmp": darker(pixels(name)) for name in reversed(range(NUM_IMAGES))}
    return save(tmp_path / "a", first), save(
        tmp_path / "b", {f"{name % 3}/{name:02}.png": pixels(name) for name in range(NUM_IMAGES)}
    )


@pytest.fixture
def network(tmp_path: Path) -> str:
    save_stand_in(str(tmp_path / "own.pt"))
    return f"inception:{tmp_path / 'own.pt'}"


class Moments(torch.nn.Module):
    """Mean and variance of each channel (B, 6) of images of any size: no resizing, few features."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images.mean(dim=(2, 3)), images.flatten(2).var(dim=2)], 1)


@pytest.fixture
def moments(tmp_path: Path) -> str:
    torch.jit.script(Moments()).save(str(tmp_path / "moments.ts"))
    return str(tmp_path / "moments.ts")


def compare(first: Path, second: Path, **options: Any) -> dict[str, Any]:
    return compare_folders(images_below(first), images_below(second), Accelerator(cpu=True), **options).report


def read(folder: Path) -> Tensor:
    """All images of a folder (N, 3, H, W) in [0, 1], in the order of their paths, decoded by Pillow."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


# Names


def test_equal_names_pair_up_and_then_those_that_differ_in_their_suffix() -> None:
    first = ["a.png", "a.jpg", "sub/b.png", "c.png", "d.v2.png"]
    second = ["a.jpg", "b.png", "d.v2.webp", "sub/b.jpg"]
    assert pair_up(first, second) == {1: 0, 2: 3, 4: 2}
    assert pair_up(["a/1.png"], ["b/1.png"]) == {}


def test_an_image_with_two_partners_is_refused() -> None:
    with pytest.raises(UserError, match=r"B has a.jpg and a.webp, of which one may pair up.*--metrics fid,kid,is"):
        pair_up(["a.png"], ["a.jpg", "a.webp"])
    with pytest.raises(UserError, match=r"A has a.jpg and a.webp"):
        pair_up(["a.jpg", "a.webp"], ["a.png"])
    assert pair_up(["a.jpg", "a.webp"], ["b.png"]) == {}  # nothing to choose


# Numbers


def test_scores_are_those_of_evaluate_s_own_pass_over_the_same_images(folders: tuple[Path, Path], network: str) -> None:
    names = ["l1", "mse", "psnr", "ssim", "box_ssim", "high_frequency"]
    report = compare(*folders, features=[network], trust_code=True)
    fake, real = read(folders[0]), read(folders[1])
    setting = Setting((32, 32), 3, CPU, NUM_IMAGES, find_weights, 8, features=(network,), trust_code=True)
    of_images, of_sets = ImageScores(choose(names, [], setting).measures), prepare(setting, ["fid", "kid", "is"])
    for part in torch.arange(NUM_IMAGES).split(10):
        blank = torch.zeros(len(part), 1, dtype=torch.bool)
        pictures = (real[part], fake[part], fake[part])
        batch = ReconstructionBatch(*pictures, blank, torch.zeros(len(part), 1, 32, 32), part, -torch.ones_like(part))
        of_images.update(batch)
        of_sets.update(batch)
    gather = Gather(Accelerator(cpu=True))
    evaluated, sets = of_images.compute(gather)["scores"]["raw"], of_sets.compute(gather)["scores"]
    assert report["scores"]["pairs"] == pytest.approx(evaluated, abs=1e-6)
    for key in ("fid[own.pt]", "kid[own.pt]", "is[own.pt]"):
        assert report["scores"]["A"][key] == pytest.approx(sets["raw"][key], rel=1e-5)
        if sets["originals"][key] is not None:
            assert report["scores"]["B"][key] == pytest.approx(sets["originals"][key], rel=1e-5)
    assert report["scores"]["A"]["fid[own.pt]"] > 0.05
    assert (report["pairs"], report["A"]["num_images"], report["B"]["num_images"]) == (NUM_IMAGES,) * 3


def test_scores_are_those_of_other_libraries(folders: tuple[Path, Path], network: str) -> None:
    report = compare(*folders, features=[network], trust_code=True, metrics="psnr,ssim,fid,kid")
    fake, real = read(folders[0]), read(folders[1])
    psnr = peak_signal_noise_ratio(fake, real, data_range=1.0, reduction="none", dim=(1, 2, 3))
    assert report["scores"]["pairs"]["psnr"] == pytest.approx(float(psnr.mean()), abs=1e-4)
    assert report["scores"]["pairs"]["ssim"] == pytest.approx(float(ssim_map(fake, real).mean()), abs=1e-5)
    extract = open_features(network, (32, 32), CPU, trust_code=True).extract
    one, other = (extract(images).features.double() for images in (fake, real))
    moments = [moment for rows in (one, other) for moment in (rows.mean(0), rows.T.cov())]
    assert report["scores"]["A"]["fid[own.pt]"] == pytest.approx(float(_compute_fid(*moments)), rel=1e-4)
    theirs = torch_fidelity.metric_kid.kid_features_to_metric(
        one, other, kid_subsets=2, kid_subset_size=NUM_IMAGES, verbose=False
    )
    assert report["scores"]["A"]["kid[own.pt]"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5)


def test_a_folder_against_itself_is_perfect(folders: tuple[Path, Path], moments: str) -> None:
    scores = compare(folders[1], folders[1], features=[moments], trust_code=True)["scores"]
    assert scores["A"]["fid[moments.ts]"] == pytest.approx(0, abs=1e-9)
    assert scores["pairs"]["psnr"] == scores["pairs"]["psnr_pooled"] == 100
    assert scores["pairs"]["psnr_identical_images"] == NUM_IMAGES
    assert scores["pairs"]["ssim"] == pytest.approx(1, abs=1e-6)


def test_other_images_add_to_the_sets_and_not_to_the_pairs(folders: tuple[Path, Path], moments: str) -> None:
    options = {"features": [moments], "trust_code": True, "metrics": "psnr,fid"}
    before = compare(*folders, **options)
    save(folders[0], {f"more/{name}.png": pixels(100 + name) for name in range(5)})
    after = compare(*folders, **options)
    assert after["scores"]["pairs"] == before["scores"]["pairs"]
    assert after["scores"]["A"] != before["scores"]["A"]
    assert (after["A"]["num_images"], after["B"]["num_images"], after["pairs"]) == (29, 24, 24)
    assert after["feature_networks"]["moments.ts"]["num_images"] == {"A": 29, "B": 24}
    extract = open_features(moments, (32, 32), CPU, trust_code=True).extract
    rows = [extract(read(folder)).features.double() for folder in folders]
    fitted = [moment for each in rows for moment in (each.mean(0), each.T.cov())]
    assert after["scores"]["A"]["fid[moments.ts]"] == pytest.approx(float(_compute_fid(*fitted)), rel=1e-4)


def test_fewer_images_than_features_have_no_fid_and_the_sentence_of_evaluate(tmp_path: Path, network: str) -> None:
    first = save(tmp_path / "a", {f"{name}.png": pixels(name) for name in range(DIM + 5)})
    second = save(tmp_path / "b", {f"{name}.png": darker(pixels(name)) for name in range(DIM)})
    report = compare(first, second, features=[network], trust_code=True)
    assert report["unavailable"]["fid[own.pt]"].startswith(f"{DIM} images are too few for the covariance of {DIM}")
    assert "kid[own.pt]" in report["scores"]["A"]
    with pytest.raises(UserError, match="--require: fid"):
        compare(first, second, features=[network], trust_code=True, require=["fid"])


# Sizes


def mixed(tmp_path: Path) -> tuple[Path, Path]:
    """Pairs of several sizes, one of them on its side by EXIF, and more images of B."""
    sizes = [(32, 32), (48, 40), (40, 48), (64, 32)]
    second = {f"{name:02}.png": pixels(name, sizes[name % 4]) for name in range(NUM_IMAGES)}
    first = {name: darker(picture) for name, picture in second.items()}
    save(tmp_path / "a", first)
    save(tmp_path / "b", second | {f"more{name}.png": pixels(50 + name, (36, 36 + name)) for name in range(3)})
    turned = Image.Exif()
    turned[274] = 6  # stored a quarter turn to the left
    Image.fromarray(np.rot90(first["01.png"])).save(tmp_path / "a" / "01.png", exif=turned)
    return tmp_path / "a", tmp_path / "b"


@pytest.mark.slow
def test_pairs_of_several_sizes_are_compared_each_at_its_own(tmp_path: Path, network: str) -> None:
    first, second = mixed(tmp_path)
    report = compare(first, second, features=[network], trust_code=True, metrics="psnr,ssim,fid")
    alone, features = [], {"a": [], "b": []}
    extract = open_features(network, (32, 32), CPU, trust_code=True).extract
    for folder, rows in features.items():
        for path in sorted((tmp_path / folder).iterdir()):
            picture = np.asarray(Image.open(path).convert("RGB"))
            picture = np.rot90(picture, -1) if path.parent.name == "a" and path.stem == "01" else picture
            image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
            rows.append(extract(image).features.double())
            alone.append((path.name, image))
    images = {name: [image for other, image in alone if other == name] for name, _ in alone}
    pairs = [both for both in images.values() if len(both) == 2]
    assert len(pairs) == NUM_IMAGES
    psnr = [float(peak_signal_noise_ratio(fake, real, data_range=1.0)) for fake, real in pairs]
    ssim = [float(ssim_map(fake, real).mean()) for fake, real in pairs]
    assert report["scores"]["pairs"]["psnr"] == pytest.approx(np.mean(psnr), abs=1e-4)
    assert report["scores"]["pairs"]["ssim"] == pytest.approx(np.mean(ssim), abs=1e-5)
    moments = [each for rows in features.values() for each in (torch.cat(rows).mean(0), torch.cat(rows).T.cov())]
    assert report["scores"]["A"]["fid[own.pt]"] == pytest.approx(float(_compute_fid(*moments)), rel=1e-4)
    assert report["sizes"] == {"smallest_sides": [32, 32], "largest_sides": [64, 48]}
    assert report["feature_networks"]["own.pt"]["resize"].startswith("bicubic")


def test_a_pair_of_two_sizes_is_refused_with_its_names_and_the_remedy(tmp_path: Path) -> None:
    first = save(tmp_path / "a", {"x.png": pixels(0), "y.png": pixels(1, (40, 32))})
    second = save(tmp_path / "b", {"x.png": pixels(0), "y.png": pixels(1)})
    with pytest.raises(UserError) as refused:
        compare(first, second)
    message = str(refused.value)
    assert f"{first / 'y.png'} (40x32) and {second / 'y.png'} (32x32) pair up" in message
    assert "(1 of 2 pairs do): --size 32x32 scales and crops all images" in message
    assert compare(first, second, size=(32, 32), metrics="psnr")["pairs"] == 2


def test_a_size_scales_and_crops_as_held_out_images_of_a_run_are(tmp_path: Path) -> None:
    first, second = mixed(tmp_path)
    report = compare(first, second, size=(24, 24), metrics="l1")
    errors = []
    for path in sorted(first.iterdir()):
        picture = np.asarray(Image.open(path).convert("RGB"))
        picture = np.rot90(picture, -1) if path.stem == "01" else picture
        other = np.asarray(Image.open(second / path.name).convert("RGB"))
        one, two = (
            cover_and_crop(torch.from_numpy(each.copy()).permute(2, 0, 1), (24, 24)).float()
            for each in (picture, other)
        )
        errors.append(float((one - two).abs().mean() / 255))
    assert report["scores"]["pairs"]["l1"] == pytest.approx(np.mean(errors), abs=1e-6)
    assert report["transform"] == {"image_size": [24, 24], "resize": None, "crop": "center"}
    assert report["changed_images"] == 2 * NUM_IMAGES + 3


def test_a_network_that_takes_images_as_they_are_wants_one_size(tmp_path: Path, moments: str) -> None:
    first, second = mixed(tmp_path)
    options = {"metrics": "kid", "trust_code": True}
    with pytest.raises(UserError, match=r"moments.ts takes images as they are, and these have several sizes"):
        compare(first, second, features=[moments], **options)
    scores = compare(first, second, features=[f"{moments},size=32"], **options)["scores"]
    assert scores["A"]["kid[moments.ts]"] > 0


def test_images_too_small_for_a_score_are_named_by_the_smallest_pair(tmp_path: Path) -> None:
    first = save(tmp_path / "a", {"x.png": pixels(0), "y.png": pixels(1, (8, 40))})
    report = compare(first, first, metrics="psnr,ssim")
    assert report["unavailable"] == {
        "ssim": "needs images of at least 11 pixels, and these have 8x32; score larger images"
    }


# What is missing


def test_without_pairs_there_are_scores_of_sets_alone(tmp_path: Path, moments: str) -> None:
    first = save(tmp_path / "a", {f"a{name}.png": pixels(name) for name in range(NUM_IMAGES)})
    second = save(tmp_path / "b", {f"b{name}.png": darker(pixels(name)) for name in range(NUM_IMAGES)})
    report = compare(first, second, features=[moments], trust_code=True)
    assert report["pairs"] == 0
    assert report["scores"].keys() == {"A", "B"}
    with pytest.raises(UserError, match="--require: psnr is of pairs, and no image of A has the name of one of B"):
        compare(first, second, features=[moments], trust_code=True, require=["psnr"])
    with pytest.raises(UserError, match="nothing can be scored: no image of A has the name of one of B"):
        compare(first, second, metrics="cheap")


def test_images_that_cannot_be_read_are_logged_and_counted(
    folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    whole = (folders[0] / "0/03.bmp").read_bytes()
    (folders[0] / "0/03.bmp").write_bytes(whole[: len(whole) // 2])  # its header is sound
    with caplog.at_level(logging.WARNING):
        report = compare(*folders, metrics="psnr")
    assert "0/03.bmp" in caplog.text
    assert (report["A"]["unreadable_images"], report["B"]["unreadable_images"]) == (1, 0)
    assert (report["A"]["num_images"], report["B"]["num_images"], report["pairs"]) == (23, 24, 23)


def test_where_no_image_can_be_read_there_is_no_score(tmp_path: Path) -> None:
    first = save(tmp_path / "a", {"x.png": pixels(0)})
    second = save(tmp_path / "b", {"x.png": pixels(0)})
    (second / "x.png").write_text("no image")
    with pytest.raises(UserError, match=r"b/x.png cannot be read; fix or replace"):
        compare(first, second, metrics="psnr")


def test_an_image_whose_header_told_another_size_is_left_out(tmp_path: Path) -> None:
    save(tmp_path, {"x.png": pixels(0), "y.png": pixels(1)})
    files = ImageFiles([tmp_path / "x.png", tmp_path / "y.png"], ["x", "y"], sizes=[(32, 32), (32, 40)])
    assert files[0][0].shape == (3, 32, 32)
    with pytest.raises(Exception, match="another size than its header said"):
        files[1]


def test_every_image_is_decoded_once(folders: tuple[Path, Path], moments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    get: Callable[..., Any] = ImageFiles.__getitem__

    def counted(self: ImageFiles, index: int) -> Any:
        decoded.append(index)
        return get(self, index)

    monkeypatch.setattr(ImageFiles, "__getitem__", counted)
    save(folders[1], {f"more/{name}.png": pixels(100 + name) for name in range(5)})
    compare(*folders, features=[moments], trust_code=True)
    assert sorted(decoded) == list(range(2 * NUM_IMAGES + 5))
