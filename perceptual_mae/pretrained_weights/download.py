"""Download or copy a file to the folder of weights: complete and with the right SHA-256, or not at all."""

import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import IO

from perceptual_mae.errors import UserError
from perceptual_mae.files import replacing
from perceptual_mae.pretrained_weights.registry import FOREIGN_WEIGHTS, ForeignWeights, check_sha256
from perceptual_mae.progress import OnProgress, no_progress

SECONDS_OF_SILENCE = 60
_CHUNK = 1 << 20


def address_of(entry: ForeignWeights) -> str:
    """Return the address that the publisher's own package knows. UserError where the file is made by hand."""
    if entry.publisher is None:
        raise UserError(f"{entry.file} {entry.recipe}; then copy it with --from FOLDER")
    if entry.publisher == "clean-fid":
        from cleanfid.downloads_helper import inception_url

        return str(inception_url)
    from torchvision.models import get_weight

    return str(get_weight(entry.publisher.removeprefix("torchvision:")).url)


def download(name: str, folder: Path, *, url: str | None = None, on_progress: OnProgress = no_progress) -> Path:
    """Download the weights of a name into `folder` (from `url`, or its publisher's address) and return the file.

    on_progress: called with the file's name, the bytes read and all bytes (0: not known). The file gets its name when
    it is complete and has the right SHA-256. Raises UserError where it does not.
    """
    entry = FOREIGN_WEIGHTS[name]
    url = url or address_of(entry)
    if "://" not in url:
        raise UserError(f"--url: {url} is no address; one begins with https:// or file://")
    try:
        with closing(urllib.request.urlopen(url, timeout=SECONDS_OF_SILENCE)) as source:
            total = int(source.headers.get("Content-Length") or 0)
            return _keep(source, folder / entry.file, entry, url, total, on_progress)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as failure:
        reason = getattr(failure, "reason", failure)
        raise UserError(
            f"{url}: {reason}; without a network, copy {entry.file} to a folder of this machine and copy it with "
            f"pmae weights fetch {name} --from FOLDER"
        ) from failure


def copy_weights(name: str, source: Path, folder: Path, *, on_progress: OnProgress = no_progress) -> Path:
    """Copy the weights of a name from the folder (or file) `source` into `folder` and return the file.

    Raises UserError where it is not there or has the wrong SHA-256.
    """
    entry = FOREIGN_WEIGHTS[name]
    path = source / entry.file if source.is_dir() else source
    if not path.is_file():
        raise UserError(f"--from: {source} holds no {entry.file}; put it there under this name")
    if (folder / entry.file).exists() and path.samefile(folder / entry.file):
        raise UserError(f"--from: {source} is the folder of weights itself; name the folder to copy from")
    with path.open("rb") as file:
        return _keep(file, folder / entry.file, entry, str(path), path.stat().st_size, on_progress)


def is_right(path: Path, entry: ForeignWeights) -> bool | None:
    """Tell whether a file has its published SHA-256; None where none is published."""
    if entry.sha256 is None:
        return None
    try:
        check_sha256(path, entry.sha256)
    except ValueError:
        return False
    return True


def _keep(
    source: IO[bytes], target: Path, entry: ForeignWeights, origin: str, total: int, on_progress: OnProgress
) -> Path:
    """Write what comes next to `target`, never more than such a file may have, check its sum, and rename it."""
    limit = largest_size(entry)
    too_large = (
        f"{origin}: is larger than {limit >> 20} MiB, and {entry.file} has about {entry.mebibytes}; it is another file "
        "and was not kept"
    )
    if total > limit:
        raise UserError(too_large)
    target.parent.mkdir(parents=True, exist_ok=True)
    if total > (free := shutil.disk_usage(target.parent).free):
        raise UserError(f"{target.parent}: has {free >> 20} MiB left and {origin} needs {total >> 20}; make room")
    digest, done = hashlib.sha256(), 0
    with replacing(target) as partial, partial.open("wb") as file:
        while chunk := source.read(_CHUNK):
            done += len(chunk)
            if done > limit:
                raise UserError(too_large)
            file.write(chunk)
            digest.update(chunk)
            on_progress(target.name, done, total)
        if total and done != total:
            raise UserError(f"{origin}: ended after {done} of {total} bytes; try again")
        if entry.sha256 is not None and digest.hexdigest() != entry.sha256:
            raise UserError(
                f"{origin}: has SHA-256 {digest.hexdigest()}, not {entry.sha256}; it is another file, or a damaged "
                "one, and was not kept"
            )
        file.flush()
        os.fsync(file.fileno())
    return target


def largest_size(entry: ForeignWeights) -> int:
    """Return the bytes that a file of these weights may have: those published, rounded up, or twice what is usual."""
    return (entry.mebibytes + 1 if entry.sha256 is not None else 2 * entry.mebibytes) << 20
