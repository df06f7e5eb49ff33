"""pmae weights: a file arrives whole and right under its name, or nothing does."""

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from perceptual_mae import cli
from perceptual_mae.errors import UserError
from perceptual_mae.pretrained_weights import download
from perceptual_mae.pretrained_weights.loading import read_weights
from perceptual_mae.pretrained_weights.registry import FOREIGN_WEIGHTS, ForeignWeights, default_folder, find

CONTENT = bytes(range(256)) * 9000  # more than one chunk


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of weights that everything finds, none of torch's, and one small published file, `tiny`."""
    monkeypatch.setenv("PMAE_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    digest = hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setitem(
        FOREIGN_WEIGHTS, "tiny", ForeignWeights("tiny-net.pt", digest, 2, "nothing", "torchvision:Tiny")
    )
    return tmp_path / "weights"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Truncated(Quiet):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:1000])


def serve(handler: object) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:  # type: ignore[arg-type]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "tiny-net.pt").write_bytes(CONTENT)
    (tmp_path / "site" / "damaged.pt").write_bytes(CONTENT[:-1] + b"?")
    yield from serve(functools.partial(Quiet, directory=str(tmp_path / "site")))


@pytest.fixture
def cut_off() -> Iterator[str]:
    yield from serve(Truncated)


def test_a_file_is_downloaded_under_its_name_and_left_alone_afterwards(
    folder: Path, site: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["weights", "fetch", "tiny", "--url", f"{site}/tiny-net.pt"]) == 0
    assert (folder / "tiny-net.pt").read_bytes() == CONTENT
    assert [path.name for path in folder.iterdir()] == ["tiny-net.pt"]
    assert f"written to {folder / 'tiny-net.pt'}" in capsys.readouterr().out
    assert find("tiny") == folder / "tiny-net.pt"
    assert cli.main(["weights", "fetch", "tiny", "--url", "http://127.0.0.1:9/nobody"]) == 0
    assert "is there already" in capsys.readouterr().out


def test_without_another_address_the_publisher_s_is_taken(
    folder: Path, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "address_of", lambda entry: f"{site}/{entry.file}")
    assert cli.main(["weights", "fetch", "tiny"]) == 0
    assert (folder / "tiny-net.pt").read_bytes() == CONTENT


def test_another_file_is_not_kept_and_does_not_harm_the_one_that_is_there(
    folder: Path, site: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.mkdir()
    (folder / "tiny-net.pt").write_bytes(b"an older one")
    assert cli.main(["weights", "fetch", "tiny", "--url", f"{site}/damaged.pt"]) == 2
    printed = capsys.readouterr().err
    assert "damaged.pt: has SHA-256" in printed
    assert "was not kept" in printed
    assert (folder / "tiny-net.pt").read_bytes() == b"an older one"
    assert len(list(folder.iterdir())) == 1


def test_a_download_that_breaks_off_leaves_nothing(
    folder: Path, cut_off: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["weights", "fetch", "tiny", "--url", f"{cut_off}/tiny-net.pt"]) == 2
    assert f"ended after 1000 of {len(CONTENT)} bytes; try again" in capsys.readouterr().err
    assert not list(folder.iterdir())


class Endless(Quiet):
    """Sends more than it should, and says so beforehand or not."""

    announces = False

    def do_GET(self) -> None:
        self.send_response(200)
        if self.announces:
            self.send_header("Content-Length", str(1 << 40))
        self.end_headers()
        with suppress(OSError):
            for _ in range(8):
                self.wfile.write(bytes(1 << 20))


@pytest.mark.parametrize("announces", [True, False])
def test_no_more_is_downloaded_than_such_a_file_has(
    announces: bool, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Endless, "announces", announces)
    for site in serve(Endless):
        assert cli.main(["weights", "fetch", "tiny", "--url", f"{site}/tiny-net.pt"]) == 2
    printed = capsys.readouterr().err
    assert "is larger than 3 MiB, and tiny-net.pt has about 2; it is another file and was not kept" in printed
    assert len(printed.splitlines()) == 1
    assert not folder.exists() or not list(folder.iterdir())


def test_of_an_endless_file_no_more_is_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["weights", "fetch", "tiny", "--url", "file:///dev/zero"]) == 2
    assert "is larger than 3 MiB" in capsys.readouterr().err
    assert not list(folder.iterdir())


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/tiny-net.pt", "file:///nowhere/tiny-net.pt", "{site}/absent"])
def test_where_nobody_answers_the_way_without_a_network_is_reported_in_a_line(
    address: str, folder: Path, site: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["weights", "fetch", "tiny", "--url", address.format(site=site)]) == 2
    printed = capsys.readouterr().err
    assert "pmae weights fetch tiny --from FOLDER" in printed
    assert len(printed.splitlines()) == 1
    assert not folder.exists() or not list(folder.iterdir())


def test_no_address_at_all_is_a_mistake_of_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["weights", "fetch", "tiny", "--url", "tiny-net.pt"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_files_are_copied_from_a_folder_and_held_against_their_sum(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stick = tmp_path / "stick"
    stick.mkdir()
    assert cli.main(["weights", "fetch", "tiny", "--from", str(stick)]) == 2
    assert f"{stick} holds no tiny-net.pt" in capsys.readouterr().err
    (stick / "tiny-net.pt").write_bytes(CONTENT)
    assert cli.main(["weights", "fetch", "tiny", "--from", str(stick)]) == 0
    assert (folder / "tiny-net.pt").read_bytes() == CONTENT
    (stick / "tiny-net.pt").write_bytes(CONTENT[::-1])
    elsewhere = tmp_path / "elsewhere"
    assert cli.main(["weights", "fetch", "tiny", "--from", str(stick), "--folder", str(elsewhere)]) == 2
    assert not list(elsewhere.iterdir())


def test_what_has_no_published_sum_is_made_by_hand_and_copied(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["weights", "fetch", "dvae"]) == 2
    assert "make it by torch.save(" in capsys.readouterr().err
    (tmp_path / "dvae_encoder.pt").write_bytes(b"made by hand")
    assert cli.main(["weights", "fetch", "dvae", "--from", str(tmp_path)]) == 0
    assert cli.main(["weights", "check", "dvae"]) == 0
    assert "cannot be checked" in capsys.readouterr().out


def test_check_has_a_line_for_each_bad_file_and_exit_code_2(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.mkdir()
    (folder / "tiny-net.pt").write_bytes(CONTENT)
    assert cli.main(["weights", "check"]) == 0
    assert "tiny-net.pt is the published file" in capsys.readouterr().out
    (folder / "tiny-net.pt").write_bytes(b"damaged")
    (folder / FOREIGN_WEIGHTS["inception"].file).write_bytes(b"damaged as well")
    assert cli.main(["weights", "check"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == ["inception", "tiny"]
    assert all("has SHA-256" in line and "pmae weights fetch" in line for line in lines)
    assert cli.main(["weights", "check", "vgg16"]) == 2  # what is named must be there
    assert "vgg16-397923af.pth is missing" in capsys.readouterr().err


def test_the_list_says_what_is_here_and_where(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    downloads = folder.parent / "torch" / "hub" / "checkpoints"
    downloads.mkdir(parents=True)
    (downloads / "vgg16-397923af.pth").write_bytes(b"")
    assert cli.main(["weights", "list"]) == 0
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("|")
    }
    assert rows["vgg16"][0] == f"in {downloads}"
    assert rows["inception"][0] == "missing"
    assert rows["inception"][3:] == ["inception-2015-12-05.pt", FOREIGN_WEIGHTS["inception"].sha256]
    assert rows["dvae"][4] == "none published"
    assert rows.keys() >= FOREIGN_WEIGHTS.keys()


def test_unknown_names_and_options_that_do_not_fit_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["weights", "fetch", "incepton"]) == 2
    assert "did you mean 'inception'?" in capsys.readouterr().err
    assert cli.main(["weights", "fetch", "tiny", "vgg16", "--url", "http://127.0.0.1:9"]) == 2
    assert cli.main(["weights", "fetch", "tiny", "--from", "/nowhere/at/all"]) == 2
    assert "/nowhere/at/all does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name, entry in FOREIGN_WEIGHTS.items() if entry.publisher])
def test_publishers_packages_know_the_addresses_and_their_digits_are_ours(name: str) -> None:
    entry = FOREIGN_WEIGHTS[name]
    address = download.address_of(entry)
    assert address.startswith("https://")
    assert address.endswith(f"/{entry.file}")
    assert entry.sha256 is not None
    assert len(entry.sha256) == 64
    if (entry.publisher or "").startswith("torchvision:"):  # its files are named by the first digits of their hash
        assert entry.file.rsplit("-", 1)[1].startswith(entry.sha256[:8])


def test_a_configuration_finds_files_by_name_and_holds_them_against_their_sum(folder: Path) -> None:
    folder.mkdir()
    torch.save({"weight": torch.ones(2)}, folder / "dvae_encoder.pt")
    for given in ("dvae", "dvae_encoder.pt"):
        assert read_weights("dvae", given).keys() == {"weight"}
    (folder / "tiny-net.pt").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="has SHA-256"):
        read_weights("tiny", "tiny")
    with pytest.raises(ValueError, match=r"vgg16 does not exist; .*pmae weights fetch vgg16"):
        read_weights("vgg16", "vgg16")


def test_a_file_of_one_s_own_goes_before_a_name(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"own": torch.ones(1)}, tmp_path / "vgg16-397923af.pth")
    assert read_weights("vgg16", "vgg16-397923af.pth").keys() == {"own"}


def test_the_folder_is_one_of_the_user_s_cache_where_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PMAE_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_folder() == Path("/somewhere/perceptual-mae/weights")


def test_a_folder_is_not_copied_onto_itself(folder: Path) -> None:
    folder.mkdir()
    (folder / "tiny-net.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match="is the folder of weights itself"):
        download.copy_weights("tiny", folder, folder)
    assert (folder / "tiny-net.pt").read_bytes() == b"damaged"
