"""Feature networks: what they return is what clean-fid, torchvision, timm and the run's own encoder return."""

from pathlib import Path

import cleanfid.fid
import pytest
import timm
import torch
from cleanfid.inception_torchscript import InceptionV3W
from PIL import Image
from safetensors.torch import save_file
from stand_in_inception import CLASSES, DIM, save_stand_in
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms.functional import normalize

from conftest import DEBUG
from perceptual_mae import Run, cli
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.feature_networks.cifar_resnet import CifarResNet
from perceptual_mae.evaluation.feature_networks.feature_network import FeatureNetwork
from perceptual_mae.evaluation.feature_networks.parsing import open_all, open_features, parse
from perceptual_mae.evaluation.metrics.frechet import fit_gaussian, frechet_distance
from perceptual_mae.images import to_uint8
from perceptual_mae.loss_networks.frozen import IMAGENET
from perceptual_mae.pretrained_weights import registry

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
CPU = torch.device("cpu")


def images(num_images: int = 6, size: tuple[int, int] = (32, 32), seed: int = 0) -> Tensor:
    """Smooth images in [0, 1], of bytes."""
    coarse = torch.rand(num_images, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)
    return to_uint8(smooth).float() / 255


def opened(text: str, size: tuple[int, int] = (32, 32)) -> FeatureNetwork:
    return open_features(text, size, CPU, trust_code=True)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of weights in which the published Inception is a small stand-in."""
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setenv("PMAE_WEIGHTS", str(folder))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    path = folder / "inception-2015-12-05.pt"
    save_stand_in(str(path))
    entry = registry.ForeignWeights(path.name, registry.sha256_of(path), 1, "scores", "clean-fid")
    monkeypatch.setitem(registry.FOREIGN_WEIGHTS, "inception", entry)
    return folder


@pytest.mark.slow
def test_inception_sees_a_tensor_as_clean_fid_sees_the_folder_of_its_files(tmp_path: Path) -> None:
    weights = tmp_path / "inception-2015-12-05.pt"
    save_stand_in(str(weights), dim=2048)
    sets = [images(40, size=(20, 28), seed=seed) for seed in (1, 2)]
    extractor = InceptionV3W(str(tmp_path), download=False)
    network, ours, theirs = opened(f"inception:{weights}", (20, 28)), [], []
    for number, one in enumerate(sets):
        folder = tmp_path / str(number)
        folder.mkdir()
        for index, image in enumerate(to_uint8(one)):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index:03d}.png")
        found = cleanfid.fid.get_folder_features(
            str(folder), extractor, num_workers=0, device=CPU, mode="clean", verbose=False
        )
        ours.append(network.extract(one).features)
        theirs.append(torch.from_numpy(found))
        torch.testing.assert_close(ours[-1], theirs[-1], rtol=1e-5, atol=1e-6)
    distances = [frechet_distance(*(fit_gaussian(found[:, :DIM]) for found in pair)) for pair in (ours, theirs)]
    assert distances[0] == pytest.approx(distances[1], rel=1e-4)
    assert distances[0] > 1e-4


def test_inception_s_classes_are_its_own_answers_without_the_bias(weights: Path) -> None:
    network, shown = opened("inception", (299, 299)), images(3, size=(299, 299))
    script = torch.jit.load(str(weights / "inception-2015-12-05.pt"))
    with torch.no_grad():
        own, biased = script(shown * 255, no_output_bias=True), script(shown * 255)
    found = network.extract(shown).probabilities
    assert found is not None
    torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-7)
    assert float((found - biased).abs().max()) > 1e-3
    facts = network.metadata
    assert (network.name, facts["dim"], facts["classes"], facts["input"]) == ("inception", DIM, CLASSES, [299, 299])
    assert facts["sha256"] == registry.sha256_of(weights / "inception-2015-12-05.pt")


def test_another_file_in_place_of_inception_is_refused_or_bears_its_own_name(weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    save_stand_in(str(other))
    with other.open("ab") as file:
        file.write(b"\0")
    other.replace(weights / "inception-2015-12-05.pt")
    with pytest.raises(UserError, match="has SHA-256"):
        opened("inception")
    save_stand_in(str(other))
    torch.jit.script(nn.Sequential(nn.Flatten())).save(str(tmp_path / "no_inception.pt"))
    with pytest.raises(UserError, match="is not the Inception network"):
        opened(f"inception:{tmp_path / 'no_inception.pt'}")
    (weights / "inception-2015-12-05.pt").unlink()
    with pytest.raises(UserError, match=r"not installed; fetch them: pmae weights fetch inception"):
        opened("inception")
    registry.FOREIGN_WEIGHTS["inception"] = registry.ForeignWeights("x.pt", "0" * 64, 1, "scores")
    assert opened(f"inception:{other}").name == "other.pt"


class Own(nn.Module):
    """Maps (B, 6, h, w), alone or with logits (B, 4)."""

    def __init__(self, with_logits: bool) -> None:
        super().__init__()
        self.maps, self.linear = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        self.with_logits = with_logits

    def forward(self, shown: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.maps(shown)
        return maps, self.linear(maps.mean(dim=(2, 3)))


class OwnMaps(Own):
    def forward(self, shown: Tensor) -> Tensor:  # type: ignore[override]
        return self.maps(shown)


def test_a_torchscript_file_returns_maps_that_are_averaged_and_perhaps_logits(tmp_path: Path) -> None:
    own, shown = Own(True).eval(), images()
    torch.jit.script(own).save(str(tmp_path / "own.ts"))
    network = opened(f"{tmp_path / 'own.ts'},mean=0.5/0.4/0.3,std=0.2/0.2/0.1")
    found = network.extract(shown)
    with torch.no_grad():
        maps, logits = own(normalize(shown, [0.5, 0.4, 0.3], [0.2, 0.2, 0.1]))
    torch.testing.assert_close(found.features, maps.mean((2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.probabilities, logits.softmax(1), rtol=1e-4, atol=1e-5)
    assert (network.name, network.metadata["dim"], network.metadata["classes"]) == ("own.ts", 6, 4)
    torch.jit.script(OwnMaps(False)).save(str(tmp_path / "maps.ts"))
    assert opened(f"torchscript:{tmp_path / 'maps.ts'}").extract(shown).probabilities is None


@pytest.mark.parametrize(("name", "trunk"), [("squeezenet1_0", "features"), ("resnet18", "layer4")])
def test_a_network_of_torchvision_gives_what_enters_its_last_layer(name: str, trunk: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    oracle = models.get_model(name, weights=None, num_classes=5).eval()
    save_file(oracle.state_dict(), tmp_path / "net.safetensors")
    maps = []
    oracle.get_submodule(trunk).register_forward_hook(lambda _, inputs, output: maps.append(output.detach()))
    shown = images(4, size=(64, 64))
    with torch.no_grad():
        logits = oracle(normalize(shown, *IMAGENET))
    network = opened(f"torchvision:{name}:{tmp_path / 'net.safetensors'},classes=5", (64, 64))
    found = network.extract(shown)
    torch.testing.assert_close(found.features, maps[0].mean((2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.probabilities, logits.softmax(1), rtol=1e-4, atol=1e-5)
    assert network.name == name
    layer = opened(f"torchvision:{name}:{tmp_path / 'net.safetensors'},classes=5,layer={trunk},name=mine", (64, 64))
    torch.testing.assert_close(layer.extract(shown).features, found.features, rtol=1e-4, atol=1e-5)
    assert layer.name == "mine"


def test_a_network_of_timm_gives_what_its_head_is_shown(tmp_path: Path) -> None:
    torch.manual_seed(0)
    oracle = timm.create_model("test_vit", pretrained=False, num_classes=9).eval()
    torch.save(oracle.state_dict(), tmp_path / "net.pt")
    config, shown = oracle.pretrained_cfg, images(3, size=(160, 160))
    with torch.no_grad():
        ready = normalize(shown, config["mean"], config["std"])
        features = oracle.forward_head(oracle.forward_features(ready), pre_logits=True)
    network = opened(f"timm:test_vit:{tmp_path / 'net.pt'},classes=9", (160, 160))
    torch.testing.assert_close(network.extract(shown).features, features, rtol=1e-4, atol=1e-5)
    assert opened(f"timm:test_vit:{tmp_path / 'net.pt'},classes=9,size=160").metadata["input"] == [160, 160]


def test_a_cifar_resnet_is_read_off_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = CifarResNet(2, width=8, classes=5).eval()
    torch.save({"state_dict": {f"module.{name}": value for name, value in own.state_dict().items()}}, tmp_path / "a.th")
    network, shown = opened(f"cifar_resnet:{tmp_path / 'a.th'}"), images()
    with torch.no_grad():
        logits = own(normalize(shown, *IMAGENET))
    torch.testing.assert_close(network.extract(shown).probabilities, logits.softmax(1), rtol=1e-4, atol=1e-5)
    assert (network.metadata["depth"], network.metadata["dim"], network.metadata["classes"]) == (14, 32, 5)


def test_the_encoder_of_a_run_gives_the_mean_of_its_patch_tokens(tmp_path: Path) -> None:
    assert (
        cli.main(["pretrain", DEBUG, "mse", "training.epochs=1", "evaluation.limit=4", "--out", str(tmp_path / "r")])
        == 0
    )
    network, shown = opened(f"run:{tmp_path / 'r'}"), images()
    encoder = Run(tmp_path / "r").generator().encoder
    with torch.no_grad():
        tokens = encoder(shown)[:, 1:].mean(1)
    found = network.extract(shown)
    torch.testing.assert_close(found.features, tokens, rtol=1e-4, atol=1e-5)
    assert found.probabilities is None
    assert network.name == "run:r"


def test_images_are_rounded_to_bytes_and_grey_ones_shown_in_three_channels(tmp_path: Path) -> None:
    torch.jit.script(OwnMaps(False)).save(str(tmp_path / "maps.ts"))
    network, shown = opened(str(tmp_path / "maps.ts")), images()
    torch.testing.assert_close(network.extract(shown + 0.4 / 255), network.extract(shown), rtol=0, atol=0)
    grey = shown[:, :1]
    torch.testing.assert_close(network.extract(grey), network.extract(grey.expand(-1, 3, -1, -1)), rtol=0, atol=0)


@pytest.mark.slow
def test_an_exported_program_does_what_a_script_does(tmp_path: Path) -> None:
    own, shown = Own(True).eval(), images()
    batch = torch.export.Dim("batch")
    exported = torch.export.export(own, (torch.rand(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
    torch.export.save(exported, tmp_path / "own.pt2")
    network = opened(str(tmp_path / "own.pt2"))
    with torch.no_grad():
        maps, logits = own(shown)
    torch.testing.assert_close(network.extract(shown).features, maps.mean((2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.extract(shown).probabilities, logits.softmax(1), rtol=1e-4, atol=1e-5)


def test_a_text_is_a_kind_what_is_meant_and_options(tmp_path: Path) -> None:
    assert parse("inception") == ("inception", "", {})
    assert parse("torchvision:resnet50:a,b.pth,size=192x256,mean=1/2/3") == (
        *("torchvision", "resnet50:a,b.pth"),
        {"size": (192, 256), "mean": (1.0, 2.0, 3.0)},
    )
    assert parse("net.ts,size=64") == ("torchscript", "net.ts", {"size": (64, 64)})
    assert parse("run:runs/a,ema=no") == ("run", "runs/a", {"ema": False})


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("incepton", "did you mean 'inception'"),
        ("absent.ts", "absent.ts does not exist"),
        ("torchvision", "say which, as torchvision:resnet50:FILE"),
        ("torchvision:resnet50", "name network and file"),
        ("torchvision:resnet5:a.pth", "did you mean 'resnet50'"),
        ("timm:resnet1:a.pth", "timm has no network 'resnet1'"),
        ("cifar_resnet:absent.pt", "absent.pt does not exist"),
        ("cifar_resnet:a.pt,sice=3", "no option 'sice' (did you mean 'size'"),
        ("cifar_resnet:a.pt,size=big", "size=big should be as size=224"),
        ("run:absent", "absent: does not exist"),
        ("{folder}/text.pt", "is neither a TorchScript file nor an exported program"),
        ("cifar_resnet:{folder}/empty.pt", "holds no CIFAR ResNet"),
        ("cifar_resnet:{folder}/empty.pt,sha256=00000000", "has SHA-256"),
        ("torchvision:resnet18:{folder}/empty.pt", "are those of another network"),
        (
            "torchvision:squeezenet1_0:{folder}/squeeze.pt",
            "images of 16x16 pixels; give a size it takes",
        ),
        ("{folder}/three.ts", "returns features of 0 dimensions"),
    ],
)
def test_mistakes_are_reported_in_a_line(text: str, reported: str, tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no network")
    torch.save({"other": torch.ones(1)}, tmp_path / "empty.pt")
    torch.jit.script(Sum()).save(str(tmp_path / "three.ts"))
    torch.save(models.squeezenet1_0(weights=None).state_dict(), tmp_path / "squeeze.pt")
    with pytest.raises(UserError) as raised:
        opened(text.format(folder=tmp_path), (16, 16))
    assert reported in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


class Sum(nn.Module):
    def forward(self, shown: Tensor) -> Tensor:
        return shown.sum()


def test_two_networks_of_one_name_need_another(tmp_path: Path) -> None:
    torch.jit.script(OwnMaps(False)).save(str(tmp_path / "maps.ts"))
    text = str(tmp_path / "maps.ts")
    with pytest.raises(UserError, match=r"two networks are called maps.ts"):
        open_all([text, text], (32, 32), CPU, trust_code=True)
    assert [network.name for network in open_all([text, f"{text},name=b"], (32, 32), CPU, trust_code=True)] == [
        "maps.ts",
        "b",
    ]
