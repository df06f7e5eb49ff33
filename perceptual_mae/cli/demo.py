"""`pmae demo`: a local page on which one paints a mask and sees what each run makes of it."""

from pathlib import Path
from typing import Annotated

import typer

from perceptual_mae.cli.options import TrustCode, check_run
from perceptual_mae.cli.output import print_lines
from perceptual_mae.errors import UserError

PORT = 8643


def demo_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders, or checkpoints in them.")],
    images: Annotated[
        list[Path] | None, typer.Option("--image", metavar="FILE", help="An image file to offer; repeat it.")
    ] = None,
    count: Annotated[int, typer.Option(min=0, max=100, help="Held-out images of the first run's data to offer.")] = 8,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help=f"Port of the page; none: {PORT}.")] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    share_folder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write a page with answers for a few masks; serve nothing.")
    ] = None,
    trust_code: TrustCode = False,
) -> None:
    """Paint a mask on an image and see what each run makes of it, e.g. pmae demo runs/mse runs/ls_gan_p.

    The page is served to this machine alone, at 127.0.0.1, until Ctrl-C.
    """
    for path in runs:
        check_run(path)
    if share_folder is not None:
        check_share_folder(share_folder, port)
    from perceptual_mae.pages.local_server import make_server, serve

    if share_folder is None:
        make_server({}, port or PORT).server_close()  # a port in use is known before PyTorch is loaded
    from perceptual_mae.demo.content import content_of, open_demo, write_shared
    from perceptual_mae.demo.page import page

    demo, notes = open_demo(runs, images or [], count, trust_code=trust_code)
    print_lines(*(f"warning: {note}" for note in notes), to_stderr=True)
    if share_folder is not None:
        written = write_shared(demo, share_folder)
        size = written.stat().st_size / 1e6
        print_lines(f"written to {written}: {size:.2f} MB, {len(demo.album.offered)} images; it opens without a server")
        return
    text = page(content_of(demo, live=True))
    with make_server(demo.routes(text), port or PORT) as server:
        serve(server, "the demo to this machine alone", print_lines, open_browser if browser else str)


def open_browser(address: str) -> None:
    """Open a page in the user's browser, without waiting for it."""
    import threading
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()


def check_share_folder(folder: Path, port: int | None) -> None:
    """Raise UserError where the folder is in use, or something is asked for that only a server does."""
    if port is not None:
        raise UserError("--share-folder writes a page and serves nothing; leave out --port")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        kind = "holds files already" if folder.is_dir() else "is a file"
        raise UserError(f"--share-folder: {folder} {kind}; name an empty or new folder")
