"""The report page in headless Chromium with the network off: it opens, and does what mouse and keyboard ask for."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from perceptual_mae.pages.local_server import HOST
from perceptual_mae.report.page import document
from perceptual_mae.report.page.document import page, report
from perceptual_mae.report.page.live import LiveReport, make_live_server
from perceptual_mae.visualization.image_grid import sheet
from run_folders import make_run
from test_document import samples

pytestmark = pytest.mark.slow

STEPS = 40
HEADS = 2
"""Of the encoder of debug size."""

Browser = Any
Tab = Any
"""Of playwright, which is no dependency."""


def make_gan_run(path: Path, seed: int) -> Path:
    """A run with curves of a GAN, an alarm, and samples of two epochs."""
    make_run(path, "data.image_size=16", "generator.patch_size=8", f"training.seed={seed}")
    lines = []
    for step in range(1, STEPS + 1):
        accuracy = {"accuracy_real": 0.5 + step / 100, "accuracy_fake": 0.9 - step / 100}
        line = {"epoch": 1 + (step > STEPS // 2), "step": step, "raw": {"mse": seed / step}, "discriminator": accuracy}
        shares = {"mse": step / STEPS, "adversarial": 1 - step / STEPS}
        lines.append(line | {"gradient_share": {"decoder": shares}, "active": ["mse", "style"][: 1 + (step > 20)]})
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (path / "log.txt").write_text(f"2026-01-01 00:00:00 WARNING step {STEPS // 2}: the discriminator wins\n")
    (path / "images").mkdir()
    for epoch in (1, 2):
        sheet(samples(10 * seed + epoch)).save(path / f"images/epoch_{epoch:04d}.png")
    names = ["original", "mean", *(f"head {head + 1}" for head in range(HEADS)), "kept"]
    sheet(dict(zip(names, attention_views(), strict=True))).save(path / "images/attention_00000040.png")
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [make_gan_run(folder / name, seed) for seed, name in enumerate(("first <b>", "second"), 1)]


@pytest.fixture(scope="module")
def file(runs: list[Path]) -> Path:
    path = runs[0].parent / "report.html"
    path.write_text(page(report(runs)), encoding="utf-8")
    return path


def attention_views() -> torch.Tensor:
    """Return the columns (views, B, 3, H, W) of a sheet of attention: original, mean, heads, kept."""
    return torch.rand(3 + HEADS, 2, 3, 16, 16, generator=torch.Generator().manual_seed(9))


class Opened:
    """A tab of its own, with everything in it that went wrong."""

    def __init__(
        self, browser: Browser, address: str, width: int = 1280, *, offline: bool = True, **options: Any
    ) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, offline=offline, **options)
        self.tab: Tab = self.context.new_page()
        self.wrong: list[str] = []
        self.asked: list[str] = []
        self.tab.on("console", lambda message: self.wrong.append(message.text) if message.type == "error" else None)
        self.tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.tab.on("requestfailed", lambda request: self.wrong.append(request.url))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.goto(address)
        self.tab.wait_for_selector(".chart canvas")

    @property
    def requests(self) -> list[str]:
        return [url for url in self.asked if not url.startswith("data:")]

    def wait_until(self, condition: str) -> None:
        """Wait until a script is true; the page's policy keeps playwright's own way out."""
        for _ in range(100):
            if self.tab.evaluate(condition):
                return
            self.tab.wait_for_timeout(200)
        pytest.fail(f"{condition} did not come true")

    def pixels(self, selector: str) -> torch.Tensor:
        """Return what a canvas shows, uint8 (4, H, W)."""
        self.tab.wait_for_timeout(200)
        data, width = self.tab.eval_on_selector(
            selector, "c => [[...c.getContext('2d').getImageData(0, 0, c.width, c.height).data], c.width]"
        )
        return torch.tensor(data, dtype=torch.uint8).view(-1, width, 4).permute(2, 0, 1)


@pytest.fixture
def opened(browser: Browser, file: Path) -> Iterator[Opened]:
    opened = Opened(browser, file.as_uri())
    yield opened
    assert opened.wrong == []
    opened.context.close()


@pytest.mark.parametrize("width", [360, 1280, 2560])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_a_request_or_an_error_and_fits(browser: Browser, file: Path, width: int, scheme: str) -> None:
    opened = Opened(browser, file.as_uri(), width, color_scheme=scheme)
    opened.tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    opened.tab.wait_for_timeout(500)
    opened.tab.emulate_media(media="print")
    opened.tab.emulate_media(media="screen")
    assert (opened.requests, opened.wrong) == ([file.as_uri()], [])
    assert opened.tab.evaluate("document.documentElement.scrollWidth") <= width
    paper = opened.tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    titles = opened.tab.eval_on_selector_all("h2", "all => all.map((each) => each.textContent)")
    assert titles == [
        *("What was trained", "Scores", "Curves over images seen", "GAN monitor", "Samples over time"),
        *("Attention", "Cost", "Configuration", "Load the encoder"),
    ]
    opened.context.close()


def test_a_page_of_as_many_points_as_it_holds_opens_in_three_seconds(browser: Browser, tmp_path: Path) -> None:
    """Six runs of 10,000 records are thinned to as many points as six of 100,000 are."""
    runs = [make_run(tmp_path / f"run_{number}", f"training.seed={number}") for number in range(6)]
    draws = np.random.default_rng(0)
    for run in runs:
        values = draws.random((10_000, 8)).tolist()
        lines = [
            {"epoch": 1, "step": step, "raw": {f"t{key}": value for key, value in enumerate(row)}}
            for step, row in enumerate(values, 1)
        ]
        (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    content = report(runs)
    points = sum(len(seen) for by_run in content["curves"].values() for seen, _ in by_run.values())
    assert points > 0.95 * document.ALL_POINTS
    (tmp_path / "report.html").write_text(page(content), encoding="utf-8")
    opened = Opened(browser, (tmp_path / "report.html").as_uri())
    opened.tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    session = opened.context.new_cdp_session(opened.tab)
    session.send("Performance.enable")
    measured = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
    assert 0.05 < measured["ProcessTime"] < 3  # CPU time of the page's own process
    opened.context.close()


def ranges(tab: Tab) -> set[tuple[float, float]]:
    """Return the ranges of images that the drawn charts show."""
    return {
        tuple(each)
        for each in tab.evaluate(
            "[...charts].filter(c => c.uplot).map(c => [c.uplot.scales.x.min, c.uplot.scales.x.max])"
        )
    }


def test_dragging_over_a_chart_zooms_all_and_a_double_click_shows_all_again(opened: Opened) -> None:
    tab = opened.tab
    over = tab.locator(".chart .u-over").first
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    tab.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 40)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 40, steps=8)
    tab.mouse.up()
    tab.wait_for_timeout(300)
    ((low, high),) = ranges(tab)
    assert 0.2 < low / (8 * STEPS) < 0.3
    assert 0.7 < high / (8 * STEPS) < 0.8
    assert float(tab.inner_text("#ribbon-ends").split()[0]) == pytest.approx(low, rel=1e-3)
    over.dblclick()
    tab.wait_for_timeout(300)
    assert ranges(tab) == {(0, 8 * STEPS)}


def test_a_chart_is_read_and_zoomed_by_the_keyboard(opened: Opened) -> None:
    tab = opened.tab
    tab.locator(".chart").first.focus()
    tab.keyboard.press("Home")
    assert tab.inner_text("#spoken").startswith("8 images: first <b>")
    tab.keyboard.press("ArrowRight")
    assert tab.inner_text("#spoken").startswith("16 images: first <b> 0.5, second 1")
    tab.keyboard.press("+")
    tab.wait_for_timeout(300)
    assert ranges(tab) != {(0, 8 * STEPS)}
    assert tab.is_enabled("#zoom-reset")
    tab.keyboard.press("0")
    tab.wait_for_timeout(300)
    assert ranges(tab) == {(0, 8 * STEPS)}


def test_the_cursor_is_in_all_charts_at_the_same_image(opened: Opened) -> None:
    tab = opened.tab
    over = tab.locator(".chart .u-over").first
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    tab.wait_for_timeout(200)
    at = tab.evaluate(
        "[...charts].filter(c => c.uplot).map(c => Math.round(c.uplot.posToVal(c.uplot.cursor.left, 'x')))"
    )
    assert len(at) == 3
    assert max(at) - min(at) <= 4
    assert 0.4 < at[0] / (8 * STEPS) < 0.6


def test_a_run_is_taken_out_of_all_charts_and_put_back(opened: Opened) -> None:
    tab = opened.tab
    shown = "[...charts].filter(c => c.uplot).flatMap(c => c.lines.map((l, i) => [l.run, c.uplot.series[i + 1].show]))"
    assert {tuple(each) for each in tab.evaluate(shown)} == {(0, True), (1, True)}
    box = tab.get_by_role("checkbox", name="second")
    box.uncheck()
    assert {tuple(each) for each in tab.evaluate(shown)} == {(0, True), (1, False)}
    box.focus()
    tab.keyboard.press("Space")
    assert {tuple(each) for each in tab.evaluate(shown)} == {(0, True), (1, True)}


def test_an_alarm_leads_to_its_place_on_the_time_line(opened: Opened) -> None:
    tab = opened.tab
    tab.get_by_role("button", name=f"second, step {STEPS // 2}").click()
    tab.wait_for_timeout(300)
    ((low, high),) = ranges(tab)
    assert (low + high) / 2 == 8 * STEPS // 2


def clip(tab: Tab) -> str:
    return str(tab.eval_on_selector(".stage canvas:nth-child(2)", "c => c.style.clipPath"))


def test_the_divider_moves_by_mouse_and_keyboard(opened: Opened) -> None:
    tab = opened.tab
    assert clip(tab) == "inset(0px 50% 0px 0px)"
    tab.get_by_role("slider", name="Divider").focus()
    tab.keyboard.press("ArrowRight")
    assert clip(tab) == "inset(0px 49% 0px 0px)"
    box = tab.locator(".stage").bounding_box()
    tab.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 20)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + 20, steps=4)
    tab.mouse.up()
    assert clip(tab) == "inset(0px 80% 0px 0px)"
    assert tab.get_by_role("slider", name="Divider").get_attribute("aria-valuetext") == "20 % of the left picture"


def test_time_goes_from_snapshot_to_snapshot_for_all_runs(opened: Opened) -> None:
    tab = opened.tab
    captions = ".sides-and-strip .strip figcaption"
    assert tab.locator(captions).all_inner_texts()[2:] == [
        f"{name}, epoch 2, 320 images seen" for name in ("first <b>", "second")
    ]
    after = opened.pixels(".sides-and-strip .strip figure:nth-child(3) canvas")
    tab.get_by_role("slider", name="Time of training").focus()
    tab.keyboard.press("ArrowLeft")
    assert tab.locator(captions).all_inner_texts()[2:] == [
        f"{name}, epoch 1, 160 images seen" for name in ("first <b>", "second")
    ]
    before = opened.pixels(".sides-and-strip .strip figure:nth-child(3) canvas")
    assert not torch.equal(before, after)
    assert tab.evaluate("document.activeElement.ariaLabel") == "Time of training"


def test_pictures_are_those_of_the_sheets(opened: Opened) -> None:
    tab = opened.tab
    tab.get_by_role("radio", name="image 2").check()
    expected = {name: (images[1] * 255).round().to(torch.uint8) for name, images in samples(22).items()}
    for place, name in ((1, "original"), (2, "masked"), (4, "composite")):
        assert torch.equal(
            opened.pixels(f".sides-and-strip .strip figure:nth-child({place}) canvas")[:3], expected[name]
        ), name
    tab.get_by_role("radio", name="whole output").check()
    assert torch.equal(opened.pixels(".sides-and-strip .strip figure:nth-child(4) canvas")[:3], expected["raw"])


def test_the_error_map_is_bright_where_hidden_pixels_are_wrong_and_grey_where_they_are_visible(opened: Opened) -> None:
    opened.tab.get_by_role("radio", name="error of hidden pixels").check()
    shown = opened.pixels(".sides-and-strip .strip figure:nth-child(4) canvas").float()
    original, raw = ((samples(22)[name][0] * 255).round() for name in ("original", "raw"))
    error = ((raw - original).abs().mean(0) / 127.5).clamp(max=1)[:, 8:].numpy()
    assert (shown[3, :, :8] == 40).all()
    assert (shown[3, :, 8:] == 255).all()
    colors = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])  # of inferno
    for channel in range(3):
        expected = np.interp(error, np.linspace(0, 1, 5), colors[:, channel])
        assert np.abs(shown[channel, :, 8:].numpy() - expected).max() < 1


def test_attention_is_shown_where_an_image_is_pointed_at_or_focused(opened: Opened) -> None:
    shown = ".attention:nth-child(2) canvas"
    original, mean, *heads = ((view[1] * 255).round().to(torch.uint8) for view in attention_views())
    assert torch.equal(opened.pixels(shown)[:3], original)
    opened.tab.locator(shown).first.hover()
    assert torch.equal(opened.pixels(shown)[:3], mean)
    opened.tab.get_by_role("radio", name="head 2").first.check()
    assert torch.equal(opened.pixels(shown)[:3], original)
    opened.tab.locator(".attention:nth-child(2)").first.focus()
    assert torch.equal(opened.pixels(shown)[:3], heads[1])
    assert opened.tab.locator(shown).first.get_attribute("aria-label") == "image 2, attention: head 2"


def test_the_attention_of_a_patch_is_shown_where_it_is_pointed_at_or_moved_to_by_keys(
    browser: Browser, runs: list[Path], tmp_path: Path
) -> None:
    maps = torch.arange(32, dtype=torch.uint8).view(8, 4) * 8  # of two images of 2x2 patches
    run = shutil.copytree(runs[0], tmp_path / "mapped")
    Image.fromarray(maps.numpy()).save(run / "images/attention_by_patch_00000040.png")
    (tmp_path / "report.html").write_text(page(report([run, runs[1]])), encoding="utf-8")
    opened = Opened(browser, (tmp_path / "report.html").as_uri())
    figure = opened.tab.locator("#attention figure").nth(1)
    shown = "#attention figure:nth-child(2) canvas"
    original = (attention_views()[0, 1] * 255).round()
    colors = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])  # of inferno

    def expected(patch: int, of: int) -> np.ndarray[Any, Any]:
        """The middle of a patch (3, 4, 4): its colour over the original."""
        share = maps[4 + of, patch].item() / 255
        heat = np.array([np.interp(share, np.linspace(0, 1, 5), colors[:, channel]) for channel in range(3)])
        top, left = 8 * (patch // 2) + 2, 8 * (patch % 2) + 2
        below = original[:, top : top + 4, left : left + 4].numpy()
        return 0.8 * heat[:, None, None] + 0.2 * below

    def check(of: int) -> None:
        pixels = opened.pixels(shown)[:3].numpy().astype(float)
        for patch in range(4):
            top, left = 8 * (patch // 2) + 2, 8 * (patch % 2) + 2
            assert np.abs(pixels[:, top : top + 4, left : left + 4] - expected(patch, of)).max() < 3
        place = f"row {of // 2 + 1}, column {of % 2 + 1}"
        assert figure.locator("canvas").get_attribute("aria-label") == f"image 2, attention: the patch in {place}"

    box = figure.locator("canvas").bounding_box()
    assert box is not None
    figure.hover(position={"x": 0.75 * box["width"], "y": 0.25 * box["height"]})
    check(1)
    figure.focus()
    for key, patch in (("ArrowLeft", 0), ("ArrowUp", 0), ("ArrowDown", 2), ("ArrowRight", 3)):
        opened.tab.keyboard.press(key)
        check(patch)
    opened.tab.mouse.move(0, 0)
    opened.tab.evaluate("document.activeElement.blur()")
    assert torch.equal(opened.pixels(shown)[:3].float(), original)
    other = opened.tab.locator("#attention figure").nth(3)
    other.focus()
    opened.tab.wait_for_timeout(200)
    assert other.locator("canvas").get_attribute("aria-label") == "image 2, attention: mean"
    assert opened.wrong == []
    opened.context.close()


@pytest.mark.parametrize("place", ["#terms figure", ".sides-and-strip"])
def test_a_picture_can_be_saved(opened: Opened, place: str) -> None:
    with opened.tab.expect_download() as saving:
        opened.tab.locator(place).get_by_text("save PNG").first.click()
    assert saving.value.suggested_filename in {"raw.mse.png", "samples.png"}
    with Image.open(saving.value.path()) as picture:
        assert picture.format == "PNG"
        assert picture.width > 300
        assert len(set(picture.convert("L").tobytes())) > 20  # something is drawn


def test_paper_is_light_where_the_screen_is_dark(browser: Browser, file: Path) -> None:
    opened = Opened(browser, file.as_uri(), color_scheme="dark")
    colors = [opened.tab.evaluate("getComputedStyle(document.body).backgroundColor")]
    for event in ("beforeprint", "afterprint"):
        opened.tab.evaluate(f"dispatchEvent(new Event('{event}'))")
        colors.append(opened.tab.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colors == ["rgb(21, 25, 30)", "rgb(255, 255, 255)", "rgb(21, 25, 30)"]
    assert opened.tab.evaluate("[...charts].every((each) => !each.holder.clientWidth || each.uplot)")
    assert opened.wrong == []
    opened.context.close()


def test_everything_has_a_name_for_a_screen_reader(opened: Opened) -> None:
    tab = opened.tab
    tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    tab.wait_for_timeout(300)
    unnamed = tab.evaluate(
        """[...document.querySelectorAll('input, select, button, canvas[role=img], [role=group], [role=region]')]
        .filter((each) => !(each.getAttribute('aria-label') || each.labels?.[0]?.textContent.trim()
            || each.labels?.[0]?.querySelector('canvas')?.getAttribute('aria-label') || each.textContent.trim()))
        .map((each) => each.outerHTML)"""
    )
    assert unnamed == []
    ids = tab.eval_on_selector_all("[id]", "all => all.map((each) => each.id)")
    assert len(ids) == len(set(ids))
    described = tab.eval_on_selector_all(
        "[aria-describedby]", "all => all.map((e) => e.getAttribute('aria-describedby'))"
    )
    assert set(described) <= set(ids)
    assert (
        tab.eval_on_selector_all(
            "table:not([role=presentation])", "all => all.filter((each) => !each.caption?.textContent).length"
        )
        == 0
    )
    assert tab.eval_on_selector_all("thead th", "all => all.filter((each) => each.scope !== 'col').length") == 0


def test_a_live_page_shows_what_was_logged_meanwhile_and_keeps_what_was_chosen(
    browser: Browser, tmp_path: Path
) -> None:
    run = make_gan_run(tmp_path / "run", 1)
    server = make_live_server(LiveReport([run], ""), 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        opened = Opened(browser, f"http://{HOST}:{server.server_port}/", offline=False)
        opened.tab.get_by_role("radio", name="image 3").check()
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"epoch": 3, "step": 2 * STEPS, "raw": {"mse": 0.125}}) + "\n")
        opened.wait_until(f"page.content.runs[0].seen === {8 * 2 * STEPS}")
        assert "As of" in opened.tab.inner_text("#freshness")
        assert opened.tab.get_by_role("radio", name="image 3").is_checked()
        opened.tab.wait_for_timeout(300)
        assert ranges(opened.tab) == {(0, 8 * 2 * STEPS)}
        assert opened.wrong == []
        assert {url.rpartition("/")[2] for url in opened.requests} == {"", "content.json"}
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    opened.wait_until("document.getElementById('freshness').textContent.includes('has ended')")
    opened.context.close()
