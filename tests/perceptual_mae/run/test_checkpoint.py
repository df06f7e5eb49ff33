"""Checkpoints are whole or not there."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
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
    assert not checkpoint.has_group(path, "discriminator")
    with pytest.raises(UserError, match=r"lists no discriminator\.safetensors"):
        checkpoint.load_tensors(path, "discriminator")


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


def test_pruning_deletes_nothing_beyond_its_own_step(tmp_path: Path) -> None:
    for step in (4, 6, 8):
        write(tmp_path, step)
    checkpoint.prune(tmp_path, latest=6, keep_last=1, keep_steps=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000006", "step_00000008"]


def stray_file(path: Path) -> None:
    path.write_text("notes")


def stray_link(path: Path) -> None:
    (path.parent / "elsewhere").mkdir()
    path.symlink_to("elsewhere")


def dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("make", [Path.mkdir, stray_file, stray_link, dangling_link])
@pytest.mark.parametrize(
    "name",
    [
        "step_x",
        "step_",
        "step_5",
        "step_-0000005",
        "step_\u0663\u0663\u0663\u0663\u0663\u0663\u0663\u0663",
        "step_00000001",
    ],
)
def test_what_is_not_a_checkpoint_breaks_neither_resuming_nor_pruning(
    name: str, make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path / name)
    write(tmp_path, 3)
    path = write(tmp_path, 4)
    assert checkpoint.newest(tmp_path) == path
    checkpoint.prune(tmp_path, latest=4, keep_last=1, keep_steps=None)
    left = {child.name for child in tmp_path.iterdir()} - {"elsewhere"}
    is_empty_checkpoint = make is Path.mkdir and name == "step_00000001"
    assert left == {path.name} | (set() if is_empty_checkpoint else {name})


def test_what_a_killed_writer_left_goes_with_the_next_pruning(tmp_path: Path) -> None:
    for name in (".step_00000002.partial", ".step_00000002.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "generator.safetensors").write_bytes(b"half")
    path = write(tmp_path, 3)
    checkpoint.prune(tmp_path, latest=3, keep_last=1, keep_steps=None)
    assert list(tmp_path.iterdir()) == [path]


def edit_manifest(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    edit(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def unlist_optimizer(path: Path) -> None:
    edit_manifest(path, lambda manifest: manifest.pop("optimizer.safetensors"))


def drop_optimizer(path: Path) -> None:
    (path / "optimizer.safetensors").unlink()
    unlist_optimizer(path)


def add_file(path: Path) -> None:
    shutil.copy(path / "generator.safetensors", path / "generator_ema.safetensors")


def lead_outside(path: Path) -> None:
    edit_manifest(path, lambda manifest: manifest.update({"../../secret": manifest["state.json"]}))


def put_pipe(path: Path) -> None:
    (path / "optimizer.safetensors").unlink()
    os.mkfifo(path / "optimizer.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (unlist_optimizer, r"does not list optimizer\.safetensors"),
        (drop_optimizer, r"does not list optimizer\.safetensors"),
        (add_file, r"generator_ema\.safetensors is not in its manifest"),
        (lead_outside, r"lists \.\./\.\./secret, which is not in its folder"),
        (put_pipe, "optimizer.* is no file|is no file.*optimizer"),
    ],
)
def test_a_checkpoint_is_what_its_manifest_lists_and_all_that_is_needed(
    damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    tensors = {name: {"weight": torch.ones(3)} for name in ("generator", "optimizer")}
    older, path = (checkpoint.save(tmp_path, step, tensors, {}) for step in (2, 3))
    groups = {"generator", "optimizer"}
    damage(path)
    assert re.search(message, checkpoint.corruption(path, groups))
    assert checkpoint.newest(tmp_path, groups) == older
    assert checkpoint.newest_whole(tmp_path, groups)[1].keys() == {path.name}
    damage(older)
    with pytest.raises(UserError, match=f"no checkpoint is whole.*{message}"):
        checkpoint.newest(tmp_path, groups)


def test_a_renamed_checkpoint_is_not_believed(tmp_path: Path) -> None:
    path = write(tmp_path, 3)
    renamed = path.rename(tmp_path / "step_00000300")
    assert checkpoint.corruption(renamed) == "it was written at step 3, so this is not its name"


def test_files_may_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = write(tmp_path, 3)
    finally:
        os.umask(before)
    assert len(list(path.iterdir())) == 3
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o640}


@pytest.mark.parametrize("name", [".step_00000003.partial", ".step_00000003.replaced", "step_00000003"])
def test_a_link_in_the_place_of_a_checkpoint_is_not_followed(name: str, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "state.json").write_text("precious")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / name).symlink_to(tmp_path / "precious")
    path = write(folder, 3)
    assert list(folder.iterdir()) == [path]
    assert [file.read_text() for file in (tmp_path / "precious").iterdir()] == ["precious"]


def test_a_full_disk_is_recognised_in_the_words_of_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", no_space)
    with pytest.raises(UserError, match="disk is full"):
        write(tmp_path, 2)
    with pytest.raises(OSError, match=r"weights\.safetensors") as failure:
        checkpoint.write_tensors(tmp_path / "weights.safetensors", {"weight": torch.ones(3)})
    assert failure.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


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
