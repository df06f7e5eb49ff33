"""Weights come from a file that is what it should be, or not at all."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from perceptual_mae.loss_networks.vgg import vgg16
from perceptual_mae.pretrained_weights.loading import copy_state, read_weights


def tensors() -> dict[str, Tensor]:
    return {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}


@pytest.mark.parametrize("wrapped", ["state_dict", "model", "params", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_dict_is_found_however_training_scripts_wrap_it(
    wrapped: str | None, prefix: str, tmp_path: Path
) -> None:
    state = {f"{prefix}{name}": value for name, value in tensors().items()}
    torch.save({wrapped: state, "epoch": 3} if wrapped else state, tmp_path / "net.pt")
    torch.testing.assert_close(read_weights("net", str(tmp_path / "net.pt")), tensors())


def test_safetensors_are_read_and_a_home_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(tensors(), tmp_path / "net.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.testing.assert_close(read_weights("net", "~/net.safetensors"), tensors())


def test_the_sum_of_the_file_is_held_against_the_one_given(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(tensors(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for given in (digest, digest.upper(), digest[:8]):
        assert read_weights("net", str(path), given).keys() == tensors().keys()
    with pytest.raises(ValueError, match=rf"net.pt has SHA-256 {digest}, not 0{{64}}; it is another file"):
        read_weights("net", str(path), "0" * 64)
    for nonsense in ("xyz", digest[:7], f"{digest}0"):
        with pytest.raises(ValueError, match="sha256 must be 8 to 64 hexadecimal digits"):
            read_weights("net", str(path), nonsense)


def test_a_wrong_sum_is_reported_before_the_file_is_opened(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"not a network")
    with pytest.raises(ValueError, match="SHA-256"):
        read_weights("net", str(tmp_path / "net.pt"), "0" * 64)


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch stolen",)


@pytest.mark.parametrize("content", ["pickle", "text", "tensor", "numbers", "empty", "safetensors"])
def test_a_file_of_something_else_is_refused_in_one_line(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / ("net.safetensors" if content == "safetensors" else "net.pt")
    if content == "pickle":
        torch.save({"weight": Malicious()}, path)
    elif content in ("text", "safetensors"):
        path.write_text("these are no weights")
    else:
        torch.save({"tensor": torch.ones(2), "numbers": {"weight": 3}, "empty": {}}[content], path)
    with pytest.raises(ValueError, match=r"the weights of net: .*net") as caught:
        read_weights("net", str(path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "stolen").exists()


def test_a_file_that_is_not_there_is_reported_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the weights of vgg16: .*absent.pt does not exist; set `weights` to a file"):
        vgg16((32, 32), 3, weights=str(tmp_path / "absent.pt"))
    with pytest.raises(ValueError, match="is a folder"):
        read_weights("net", str(tmp_path))


def test_random_weights_have_no_sum() -> None:
    with pytest.raises(ValueError, match="random weights have no sha256"):
        vgg16((32, 32), 3, weights="random", sha256="0" * 64)


def test_tensors_of_another_network_are_named() -> None:
    network = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"those of another network, tensors 1 missing \(first: bias\)"):
        copy_state(network, {"weight": torch.ones(2, 3)}, "net", "net.pt")
    with pytest.raises(ValueError, match=r"1 of another shape \(first: weight\)"):
        copy_state(network, {"weight": torch.ones(3, 2), "bias": torch.ones(2)}, "net", "net.pt")


def test_half_precision_is_widened_and_the_count_of_an_old_norm_may_be_missing() -> None:
    network = nn.BatchNorm1d(2)
    state = {name: torch.full_like(value, 0.5).half() for name, value in network.state_dict().items()}
    del state["num_batches_tracked"]
    copy_state(network, state, "net", "net.pt")
    assert network.running_var.dtype == torch.float32
    assert network.weight.tolist() == [0.5, 0.5]
