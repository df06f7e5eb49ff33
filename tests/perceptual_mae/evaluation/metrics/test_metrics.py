"""The scores of single images: hand-worked values, and what independent libraries say of the same tensors."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import kornia
import lpips
import pytest
import pytorch_msssim
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from perceptual_mae.data.decoding import read_image
from perceptual_mae.evaluation.metrics import METRICS
from perceptual_mae.evaluation.metrics import lpips as lpips_metric
from perceptual_mae.evaluation.metrics.protocol import ImageMetric, Setting, UnavailableError
from perceptual_mae.evaluation.reconstruction.per_image import image_score, whole_mean
from perceptual_mae.loss_networks.lpips import lpips_trunk
from perceptual_mae.losses.frequency import LAPLACIAN, laplacian_error
from perceptual_mae.losses.ms_ssim import ms_ssim, ssim_map

pytestmark = pytest.mark.filterwarnings("ignore:The parameter 'pretrained'", "ignore:Arguments other than a weight")

CHEAP = [name for name, line in METRICS.items() if isinstance(line, ImageMetric) and not line.network]


def nowhere(name: str) -> Path:
    raise UnavailableError(f"the weights of {name} are not installed")


def setting(size: tuple[int, int], channels: int = 3, find: Callable[[str], Path] = nowhere) -> Setting:
    return Setting(size, channels, torch.device("cpu"), 8, find, 8)


def pair(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth originals and noisy reconstructions of them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(*shape[:2], 8, 8, generator=generator)
    real = F.interpolate(coarse, size=shape[2:], mode="bicubic", antialias=False).clamp(0, 1)
    return (real + 0.15 * torch.randn(shape, generator=generator)).clamp(0, 1), real


def score(name: str, fake: Tensor, real: Tensor) -> Tensor:
    line = METRICS[name]
    assert isinstance(line, ImageMetric)
    measure = line.prepare(setting((real.shape[2], real.shape[3]), real.shape[1]))
    return image_score(line, whole_mean(measure(fake, real)))


@pytest.mark.parametrize("name", CHEAP)
@pytest.mark.parametrize("shape", [(3, 3, 176, 200), (1, 1, 176, 176)])
def test_every_cheap_metric_scores_each_image_by_itself(name: str, shape: tuple[int, ...]) -> None:
    fake, real = pair(*shape)
    scores = score(name, fake, real)
    assert scores.shape == (shape[0],)
    assert scores.dtype == torch.float64
    for i in range(shape[0]):
        assert float(score(name, fake[i : i + 1], real[i : i + 1])) == pytest.approx(float(scores[i]), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "perfect"),
    [
        ("l1", 0),
        ("mse", 0),
        ("psnr", 100),
        ("ssim", 1),
        ("ms_ssim", 1),
        ("box_ssim", 1),
        ("high_frequency", 0),
    ],
)
def test_identical_images_are_perfect(name: str, perfect: float) -> None:
    _, real = pair(2, 3, 176, 176)
    assert score(name, real, real.clone()).tolist() == pytest.approx([perfect] * 2, abs=1e-6)


def test_a_tenth_off_everywhere_is_an_l1_of_a_tenth_and_20_db() -> None:
    real = torch.full((1, 3, 16, 16), 0.5)
    assert float(score("l1", real + 0.1, real)) == pytest.approx(0.1)
    assert float(score("mse", real + 0.1, real)) == pytest.approx(0.01)
    assert float(score("psnr", real + 0.1, real)) == pytest.approx(20.0, abs=1e-4)  # Method, section E
    assert float(score("high_frequency", real + 0.1, real)) == pytest.approx(0.0, abs=1e-6)


def test_ssim_of_constants_is_its_luminance_term() -> None:
    real = torch.full((1, 3, 16, 16), 0.5, dtype=torch.float64)  # in float32 a flat region is good to 4e-4
    for name in ("ssim", "box_ssim"):
        assert float(score(name, real + 0.1, real)) == pytest.approx(0.983609, abs=1e-6)


def test_box_ssim_of_an_edge_is_the_published_number() -> None:
    edge = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    edge[..., 4:] = 1
    assert float(score("box_ssim", 0.5 * edge + 0.25, edge)) == pytest.approx(0.557436, abs=1e-6)
    assert float(score("box_ssim", 1 - edge, edge)) == pytest.approx(-0.199126, abs=1e-6)


def test_one_lone_pixel_has_a_laplacian_of_eight_times_its_height() -> None:
    real = torch.zeros(1, 1, 5, 5)
    fake = real.clone()
    fake[0, 0, 2, 2] = 0.5
    found = laplacian_error(fake, real)[0, 0]
    assert found[2, 2] == 2.0
    assert found[1, 2] == found[2, 1] == found[3, 2] == found[2, 3] == 0.5
    assert float(score("high_frequency", fake, real)) == pytest.approx(8 * 0.5 / 25)


def test_the_border_of_a_laplacian_is_reflected() -> None:
    fake, real = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    fake[..., 0, 1] = 1.0  # its reflection lies above the second row's neighbour: row -1 is row 1
    found = laplacian_error(fake, real)[0, 0]
    assert found[0].tolist() == [1.0 * 2, 4.0, 1.0, 0.0]  # at (0, 0) the neighbours left and right are both column 1
    assert found[1].tolist() == [0.0, 1.0, 0.0, 0.0]


def test_pixel_scores_equal_torchmetrics_and_kornia() -> None:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    fake, real = pair(4, 3, 48, 40)
    for i in range(4):
        one, other = fake[i : i + 1], real[i : i + 1]
        expected = float(peak_signal_noise_ratio(one, other, data_range=1.0))
        assert float(score("psnr", one, other)) == pytest.approx(expected, abs=1e-4)
        assert float(kornia.metrics.psnr(one, other, 1.0)) == pytest.approx(expected, abs=1e-4)
    laplacian = kornia.filters.filter2d(fake - real, torch.tensor([LAPLACIAN]), border_type="reflect")
    torch.testing.assert_close(score("high_frequency", fake, real), laplacian.abs().double().mean((1, 2, 3)))


@pytest.mark.parametrize("shape", [(2, 3, 11, 11), (4, 3, 48, 40), (1, 1, 224, 224)])
def test_ssim_equals_the_map_of_our_loss(shape: tuple[int, ...]) -> None:
    fake, real = pair(*shape)
    real[..., : shape[3] // 2] = 0.25  # a flat half: its variances are differences of equal numbers
    torch.testing.assert_close(score("ssim", fake, real), whole_mean(ssim_map(fake, real)), rtol=0, atol=2e-6)
    line = METRICS["ssim"]
    assert isinstance(line, ImageMetric)
    found = line.prepare(setting((shape[2], shape[3]), shape[1]))(fake.double(), real.double())
    torch.testing.assert_close(found, ssim_map(fake.double(), real.double()), rtol=0, atol=1e-9)


def test_ssim_equals_pytorch_msssim_torchmetrics_and_kornia() -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    fake, real = pair(4, 3, 48, 40)
    scores = score("ssim", fake, real).float()
    theirs = pytorch_msssim.ssim(fake, real, data_range=1.0, size_average=False)
    torch.testing.assert_close(scores, theirs, rtol=0, atol=2e-6)
    fake, real = fake.double(), real.double()  # a single place of the map is only good to 1e-4 in float32
    _, padded = structural_similarity_index_measure(fake, real, data_range=1.0, return_full_image=True)
    torch.testing.assert_close(ssim_map(fake, real), padded[..., 5:-5, 5:-5], rtol=0, atol=1e-6)
    drawn = kornia.metrics.ssim(fake, real, 11, max_val=1.0, padding="valid")
    torch.testing.assert_close(ssim_map(fake, real), drawn, rtol=0, atol=1e-6)


def test_ms_ssim_equals_our_loss_and_torchmetrics_but_for_its_padding() -> None:
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    fake, real = pair(2, 3, 176, 192)
    scores = score("ms_ssim", fake, real)
    assert 1 - float(ms_ssim((fake,), (real,), form="wang")) == pytest.approx(float(scores.mean()), abs=1e-5)
    padded = multiscale_structural_similarity_index_measure(fake, real, data_range=1.0, reduction="none")
    torch.testing.assert_close(scores.float(), padded, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", ["ssim", "box_ssim", "ms_ssim"])
def test_similarity_is_computed_in_float32_under_autocast(name: str) -> None:
    fake, real = pair(1, 3, 176, 176)
    expected = score(name, fake, real)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(score(name, fake, real), expected)


def test_ms_ssim_says_how_large_images_must_be() -> None:
    line = METRICS["ms_ssim"]
    assert isinstance(line, ImageMetric)
    with pytest.raises(UnavailableError, match="at least 161 pixels, and these have 32x40; score larger images"):
        line.prepare(setting((32, 40)))
    assert score("ms_ssim", *pair(1, 3, 161, 161)).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_lpips_equals_its_package(net: lpips_metric.Net, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    state = {f"features.{name.partition('.')[2]}": value for name, value in theirs.net.state_dict().items()}
    torch.save(state, tmp_path / "trunk.pth")
    network = lpips_trunk((32, 32), 3, net=net, weights=str(tmp_path / "trunk.pth"), calibrated=True)
    measure, (fake, real) = lpips_metric.distance(network), pair(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            measure(fake, real), theirs(fake, real, normalize=True).flatten(), rtol=1e-4, atol=1e-6
        )
        assert measure(real, real.clone()).tolist() == [0.0] * 3


def test_lpips_in_parts_is_lpips_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    measure = lpips_metric.distance(lpips_trunk((32, 32), 3, weights="random", calibrated=True))
    fake, real = pair(5, 3, 32, 32)
    at_once = measure(fake, real)
    monkeypatch.setattr(lpips_metric, "PIXELS_AT_ONCE", 2 * 32 * 32)
    torch.testing.assert_close(measure(fake, real), at_once)


def test_lpips_is_unavailable_for_small_images_missing_weights_and_other_files(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="at least 32 pixels, and these have 24x32"):
        lpips_metric.prepare(setting((24, 32)), "alex")
    with pytest.raises(UnavailableError, match="the weights of vgg16 are not installed"):
        lpips_metric.prepare(setting((32, 32)), "vgg")
    other = tmp_path / "squeezenet1_1-b8a52dc0.pth"
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), other)
    with pytest.raises(UnavailableError, match=r"has SHA-256 .*fetch it again: pmae weights fetch squeezenet1_1"):
        lpips_metric.prepare(setting((32, 32), find=lambda _: other), "squeeze")


@pytest.mark.data
def test_photographs_score_as_pytorch_msssim_says(shared_data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(shared_data / "imagenet_photos.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))[::130]
        photos = [Path(archive.extract(name, tmp_path)) for name in names]
    real = torch.stack([read_image(path) for path in photos]).float() / 255
    fake = F.interpolate(F.avg_pool2d(real, 4), scale_factor=4, mode="nearest")
    for name, oracle in (("ssim", pytorch_msssim.ssim), ("ms_ssim", pytorch_msssim.ms_ssim)):
        expected = oracle(fake, real, data_range=1.0, size_average=False)
        torch.testing.assert_close(score(name, fake, real).float(), expected, rtol=0, atol=1e-5)
        assert 0.3 < float(expected.min()) < float(expected.max()) < 1
