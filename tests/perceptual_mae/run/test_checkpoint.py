"""Checkpoints are whole or not there."""

import errno
import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import Adam

from perceptual_mae.errors import UserError
from perceptual_mae.run import checkpoint


def write(folder: Path, step: int, value: float = 1.0) -> Path:
    return checkpoint.save(folder, step, {"generator": {"weight": torch.full((3,), value)}}, {"step": step})


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    path = write(tmp_path, 7)
    assert checkpoint.newest(tmp_path) == path
    assert checkpoint.load_metadata(path) == {"step": 7}
    torch.testing.assert_close(checkpoint.load_tensors(path, "generator"), {"weight": torch.ones(3)})
    assert checkpoint.load_tensors(path, "discriminator") is None


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    good, bad = write(tmp_path, 1), write(tmp_path, 2)
    content = bytearray((bad / "generator.safetensors").read_bytes())
    content[-1] ^= 1
    (bad / "generator.safetensors").write_bytes(content)
    assert checkpoint.newest(tmp_path) == good
    assert "generator.safetensors" in checkpoint.corruption(bad)


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    good = write(tmp_path, 1)
    (tmp_path / "step_00000009").mkdir()
    assert checkpoint.newest(tmp_path) == good


@pytest.mark.parametrize("manifest", ["", "[]", "null", "{}", '{"generator.safetensors": {}}'])
def test_checkpoints_that_are_all_damaged_stop_the_run_instead_of_restarting_it(tmp_path: Path, manifest: str) -> None:
    (write(tmp_path, 1) / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match=r"no checkpoint is whole.*step_00000001.*--fresh"):
        checkpoint.newest(tmp_path)


def test_other_names_are_left_alone(tmp_path: Path) -> None:
    for name in ("step_00000004_old", "step_backup"):
        (tmp_path / name).mkdir()
    write(tmp_path, 5)
    checkpoint.prune(tmp_path, latest=5, keep_last=1, keep_steps=None)
    assert len(list(tmp_path.iterdir())) == 3


def test_pruning_never_keeps_a_damaged_future_for_the_good_present(tmp_path: Path) -> None:
    damaged = write(tmp_path, 8)
    (damaged / "manifest.json").write_text("")
    good = write(tmp_path, 6)
    checkpoint.prune(tmp_path, latest=6, keep_last=1, keep_steps=None)
    assert list(tmp_path.iterdir()) == [good]


def test_a_full_disk_leaves_the_last_checkpoint_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = write(tmp_path, 1)

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", no_space)
    with pytest.raises(UserError, match=r"disk is full.*step_00000001, is intact"):
        write(tmp_path, 2)
    assert checkpoint.newest(tmp_path) == last
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    write(tmp_path, 1, value=1.0)
    path = write(tmp_path, 1, value=2.0)
    assert float(checkpoint.load_tensors(path, "generator")["weight"][0]) == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


class Recorder:
    """What `save` does to the disk, in order: files opened to be flushed, flushes, renames."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, Path]] = []
        self.handles: dict[int, Path] = {}
        real_open, real_sync, real_rename = os.open, os.fsync, Path.rename

        def opened(path: Path, *options: int) -> int:
            handle = real_open(path, *options)
            self.handles[handle] = Path(path)
            return handle

        def synced(handle: int) -> None:
            self.events.append(("flush", self.handles[handle]))
            real_sync(handle)

        def renamed(path: Path, target: Path) -> Path:
            self.events.append(("rename", path))
            return real_rename(path, target)

        monkeypatch.setattr(checkpoint.os, "open", opened)
        monkeypatch.setattr(checkpoint.os, "fsync", synced)
        monkeypatch.setattr(Path, "rename", renamed)


def test_every_file_and_its_folder_are_flushed_before_the_rename_and_handles_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    final = write(tmp_path, 1)
    partial = tmp_path / ".step_00000001.partial"
    rename = recorder.events.index(("rename", partial))
    flushed = {path for event, path in recorder.events[:rename] if event == "flush"}
    assert flushed == {partial, *(partial / path.name for path in final.iterdir())}
    assert len(list(final.iterdir())) == 3
    assert recorder.events[rename + 1 :] == [("flush", tmp_path)]
    assert recorder.handles
    for handle in recorder.handles:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(handle)


def test_a_checkpoint_has_its_name_only_when_it_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_save_file, names = checkpoint.save_file, list[str]()

    def save_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
        real_save_file(tensors, path)
        names.append(path.parent.name)
        assert not checkpoint.checkpoints(tmp_path)

    monkeypatch.setattr(checkpoint, "save_file", save_file)
    write(tmp_path, 1)
    assert names == [".step_00000001.partial"]
    assert len(checkpoint.checkpoints(tmp_path)) == 1


def test_the_checkpoint_that_a_new_one_replaces_is_moved_aside_and_not_deleted_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1, value=1.0)
    real_rename = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise OSError(errno.EIO, "the machine stops here")
        return real_rename(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(UserError, match="machine stops here"):
        write(tmp_path, 1, value=2.0)
    (kept,) = tmp_path.iterdir()
    assert float(checkpoint.load_tensors(kept, "generator")["weight"][0]) == 1.0
    assert checkpoint.corruption(kept) is None


def test_pruning_keeps_the_last_and_every_nth(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        write(tmp_path, step)
    checkpoint.prune(tmp_path, latest=50, keep_last=2, keep_steps=20)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step_{step:08d}" for step in (20, 40, 50)]


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    state = nn.Linear(3, 2).state_dict()
    with pytest.raises(UserError, match=r"another architecture.*weight"):
        checkpoint.load_module(nn.Linear(4, 2), state, tmp_path)
    with pytest.raises(UserError, match=r"missing \(first: bias\)"):
        checkpoint.load_module(nn.Linear(3, 2), {"weight": state["weight"]}, tmp_path)


def test_optimizer_moments_keep_the_memory_format_of_their_parameters() -> None:
    torch.manual_seed(0)
    networks = [nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    optimizers = [Adam(network.parameters(), fused=True) for network in networks]
    images = torch.randn(2, 3, 8, 8)

    def step(which: int) -> None:
        optimizers[which].zero_grad()
        networks[which](images).square().sum().backward()
        optimizers[which].step()

    step(0)
    kept = {key: value.contiguous() for key, value in checkpoint.optimizer_tensors(optimizers[0]).items()}
    networks[1].load_state_dict(networks[0].state_dict())
    checkpoint.load_optimizer(optimizers[1], kept)
    step(0)
    step(1)
    assert torch.equal(networks[0].weight, networks[1].weight)
