"""The documentation site: its pages, its pictures, what it says of the public names; built, it asks for nothing."""

import importlib
import inspect
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urljoin

import pytest

import discriminators
import perceptual_mae
from test_docs import ROOT, blocks

SITE = ROOT / "docs/site"
CONF = runpy.run_path(str(SITE / "conf.py"))
API_PAGES = sorted((SITE / "api").glob("*.rst"))
GALLERY = (ROOT / "docs/gallery.md").read_text()
RESULTS = sorted(path.name for path in (ROOT / "docs/results").glob("*.png"))

Browser = Any
"""Of playwright, which is no dependency."""


def pages() -> set[str]:
    """Return the names of all pages of the site, without their endings."""
    found = {path for pattern in CONF["include_patterns"] for path in ROOT.glob(pattern)}
    return {path.relative_to(ROOT).with_suffix("").as_posix() for path in found}


def navigation() -> list[str]:
    tree = CONF["navigation"]((ROOT / "docs/README.md").read_text())
    return [line.removeprefix("/") for line in tree.splitlines() if line.startswith("/")]


def test_every_page_is_in_the_navigation_once_and_every_entry_is_a_page() -> None:
    api = [f"docs/site/api/{name}" for name in re.findall(r"^   (\w+)$", (SITE / "api/index.rst").read_text(), re.M)]
    entries = ["README", *navigation(), *api]
    assert len(entries) == len(set(entries))
    assert set(entries) == pages()


def test_the_navigation_has_the_headings_of_the_index() -> None:
    captions = re.findall(r":caption: (.*)", CONF["navigation"]((ROOT / "docs/README.md").read_text()))
    assert captions == ["Guide", "Reference", "Results"]


def named_modules(page: Path) -> list[ModuleType]:
    """Return the modules that a page documents whole."""
    return [importlib.import_module(name) for name in re.findall(r"automodule:: (\S+)\n(?!   :no-m)", page.read_text())]


@pytest.mark.parametrize("page", API_PAGES, ids=lambda page: page.stem)
def test_public_functions_and_classes_of_a_page_have_docstrings(page: Path) -> None:
    for module in named_modules(page):
        assert module.__doc__, module.__name__
        for name, item in vars(module).items():
            is_own = getattr(item, "__module__", None) == module.__name__ and not name.startswith("_")
            if is_own and (inspect.isclass(item) or inspect.isfunction(item)):
                assert item.__doc__, f"{module.__name__}.{name}"


def test_what_the_packages_export_is_on_the_pages() -> None:
    text = (SITE / "api/perceptual_mae.rst").read_text()
    shown = re.findall(r":: perceptual_mae\.(?:losses\.)?(\w+)$", text, re.MULTILINE)
    assert sorted(shown) == sorted(perceptual_mae.__all__)
    for name in perceptual_mae.__all__:
        assert inspect.getdoc(getattr(perceptual_mae, name)), name
    modules = [module.__name__ for page in API_PAGES for module in named_modules(page)]
    exported = {getattr(discriminators, name) for name in discriminators.__all__ if name[1].islower()}
    assert {item.__module__ for item in exported} <= set(modules)


def test_modules_that_the_pages_import_are_on_the_api_pages() -> None:
    shown = {module.__name__ for page in API_PAGES for module in named_modules(page)} | {"perceptual_mae"}
    for page in ("docs/python.md", "docs/encoder.md", "docs/extending.md"):
        for block in [*blocks(page, "python"), *blocks(page, "py")]:
            for module in re.findall(r"^from ((?:perceptual_mae|discriminators)\S*) import", block, re.MULTILINE):
                assert module in shown, f"{page}: {module}"


def test_the_gallery_has_every_picture_of_the_results_once() -> None:
    shown = re.findall(r"!\[[^]]+\]\(results/([^)]+)\)", GALLERY)
    assert sorted(shown) == RESULTS


def test_every_picture_of_the_gallery_has_its_command_and_what_there_is_to_see() -> None:
    _, *entries = re.split(r"^!\[", GALLERY, flags=re.MULTILINE)
    assert len(entries) == len(RESULTS)
    for entry in entries:
        match = re.fullmatch(r"[^\n]+\n\n```\n(.+?)```\n\n(.+?)\n*(\n## .*\n+)?", entry, re.DOTALL)
        assert match, entry
        assert re.match(r"(pmae \w+|uv run python scripts/\S+\.py) ", match[1])
        assert re.search(r"\w.*\. \[|\w.*\.\n\[", match[2]), entry


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with every warning an error."""
    for name in ("sphinx", "furo", "myst_nb"):
        pytest.importorskip(name, reason="the group docs is not installed: uv sync --group docs")
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", SITE, "-d", folder / "trees"]
    built = subprocess.run([*words, ROOT, folder / "html"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder / "html"


RESOURCES = (
    r"<(?:script|img|iframe|source|video|object|embed)\b[^>]*?\b(?:src|data)=\"([^\"]+)|<link\b[^>]*href=\"([^\"]+)"
)


@pytest.mark.slow
def test_nothing_that_a_page_loads_is_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        for groups in re.findall(RESOURCES, page.read_text()):
            target = urljoin(page.as_uri(), "".join(groups)).partition("?")[0].partition("#")[0]
            assert target.startswith(site.as_uri()), f"{page}: {target}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text()), style


@pytest.fixture
def asked(browser: Browser, site: Path) -> Iterator[tuple[Any, list[str]]]:
    """A tab with the network off, and the addresses that it has asked for."""
    context = browser.new_context(offline=True)
    tab = context.new_page()
    addresses: list[str] = []
    tab.on("request", lambda request: addresses.append(request.url))
    yield tab, addresses
    context.close()


@pytest.mark.slow
@pytest.mark.parametrize("page", ["index", "docs/gallery", "docs/site/api/losses"])
def test_a_page_opens_from_the_disk_and_asks_for_nothing_else(
    asked: tuple[Any, list[str]], site: Path, page: str
) -> None:
    tab, addresses = asked
    wrong: list[str] = []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("requestfailed", lambda request: wrong.append(request.url))
    tab.goto((site / f"{page}.html").as_uri())
    tab.wait_for_load_state("networkidle")
    assert wrong == []
    assert {address.partition(":")[0] for address in addresses} <= {"file", "data"}


@pytest.mark.slow
def test_the_search_finds_pages_without_a_network(asked: tuple[Any, list[str]], site: Path) -> None:
    tab, addresses = asked
    tab.goto(f"{(site / 'search.html').as_uri()}?q=adversarial_discriminator")
    tab.wait_for_selector("#search-results li a")
    found = tab.eval_on_selector_all("#search-results li a", "all => all.map((each) => each.href)")
    assert any("docs/site/api/losses.html" in address for address in found)
    assert any("docs/python.html" in address for address in found)
    assert all(address.startswith("file:") for address in addresses)
