"""The demo's page in headless Chromium: painted, uploaded to and switched by mouse and keyboard."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from perceptual_mae.demo.content import open_demo, write_shared
from perceptual_mae.demo.masks import nearest_mask, read_mask
from running_demo import Visitor, make_runs, png, serving

pytestmark = pytest.mark.slow

Browser = Any
Tab = Any
"""Of playwright, which is no dependency."""

HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])  # of inferno


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def visitor(runs: list[Path]) -> Iterator[Visitor]:
    with serving(runs) as visitor:
        yield visitor


@pytest.fixture(scope="module")
def shared(runs: list[Path]) -> str:
    demo, _ = open_demo(runs, [], 2)
    return write_shared(demo, runs[0].parent / "shared").as_uri()


class Opened:
    """A tab of its own, with everything in it that went wrong, and what it asked for elsewhere."""

    def __init__(self, browser: Browser, address: str, width: int = 1280, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 1000}, **options)
        self.tab: Tab = self.context.new_page()
        self.wrong: list[str] = []
        self.elsewhere: list[str] = []
        self.tab.on("console", lambda message: self.wrong.append(message.text) if message.type == "error" else None)
        self.tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.tab.on("requestfailed", lambda request: self.wrong.append(request.url))
        self.tab.on("request", lambda request: self.note(request.url, address))
        self.tab.goto(address)
        self.wait()

    def note(self, url: str, address: str) -> None:
        if not url.startswith(("data:", address)):
            self.elsewhere.append(url)

    def wait(self) -> None:
        """Wait until what was painted last is answered and drawn."""
        for _ in range(100):
            self.tab.wait_for_timeout(100)
            if self.tab.evaluate("!state.isAsking && status.textContent !== '' && !status.textContent.endsWith('...')"):
                self.tab.wait_for_timeout(100)
                return
        pytest.fail("the page did not answer")

    @property
    def mask(self) -> str:
        text: str = self.tab.evaluate("brush.text")
        return text

    def score(self, method: int) -> str:
        text: str = self.tab.inner_text(f"figure[data-method='{method}'] .score")
        return text

    def pixels(self, method: int) -> np.ndarray:
        """What is shown of a method, float64 (4, H, W)."""
        data, width = self.tab.eval_on_selector(
            f"figure[data-method='{method}'] canvas",
            "c => [[...c.getContext('2d').getImageData(0, 0, c.width, c.height).data], c.width]",
        )
        return np.array(data, dtype=np.float64).reshape(-1, width, 4).transpose(2, 0, 1)

    def patch(self, row: int, column: int) -> tuple[float, float]:
        """The middle of a patch of the 4 x 4 grid, in pixels of the window."""
        box = self.tab.locator("canvas.brush").bounding_box()
        return box["x"] + (column + 0.5) * box["width"] / 4, box["y"] + (row + 0.5) * box["height"] / 4


@pytest.fixture
def opened(browser: Browser, visitor: Visitor) -> Iterator[Opened]:
    opened = Opened(browser, f"http://127.0.0.1:{visitor.port}/")
    yield opened
    assert (opened.wrong, opened.elsewhere) == ([], [])
    opened.context.close()


def filled(visitor: Visitor, key: str, mask: str, method: int) -> Any:
    """What a method makes of a photograph under a mask, by Python alone."""
    demo = visitor.demo
    photograph = demo.album.get(key)
    assert photograph is not None
    return demo.methods[method].fill(photograph.views[0], read_mask(mask, (4, 4)), (4, 4))


def check_shown(opened: Opened, visitor: Visitor, key: str, mask: str) -> None:
    """The page's mask, its PSNR and its composites are those of Python."""
    assert opened.mask == mask
    photograph = visitor.demo.album.get(key)
    assert photograph is not None
    for method, patches in ((0, 4), (1, 8)):
        filling = filled(visitor, key, mask, method)
        assert opened.score(method) == f"{filling.psnr:.2f} dB"
        own = nearest_mask(read_mask(mask, (4, 4)), (4, 4), (patches, patches)).view(patches, patches)
        hidden = own.repeat_interleave(32 // patches, 0).repeat_interleave(32 // patches, 1)
        expected = torch.where(hidden, filling.output, photograph.views[0])
        assert (opened.pixels(method)[:3] == expected.numpy()).all()


def test_it_opens_with_the_first_image_under_a_random_mask_of_the_runs_ratio(opened: Opened, visitor: Visitor) -> None:
    mask = opened.mask
    assert mask.count("1") == 12
    check_shown(opened, visitor, "offered-0", mask)
    assert "12 of 16 patches hidden (75 %)" in opened.tab.inner_text("#status")
    assert opened.tab.inner_text("figure[data-method='1'] h2") == "fine <b>"
    assert "nearest mask of its 8 x 8 patches: 48 of 64 hidden" in opened.tab.inner_text("figure[data-method='1']")


def test_a_stroke_of_the_mouse_hides_every_patch_on_its_way(opened: Opened, visitor: Visitor) -> None:
    tab = opened.tab
    tab.get_by_role("button", name="nothing").click()
    opened.wait()
    assert opened.score(0) == "nothing is hidden"
    tab.mouse.move(*opened.patch(1, 0))
    tab.mouse.down()
    tab.mouse.move(*opened.patch(1, 3))  # in one leap
    tab.mouse.move(*opened.patch(3, 3))
    tab.mouse.up()
    opened.wait()
    check_shown(opened, visitor, "offered-0", "0000111100010001")
    tab.mouse.click(*opened.patch(1, 1))  # a hidden patch is shown again
    opened.wait()
    check_shown(opened, visitor, "offered-0", "0000101100010001")
    tab.get_by_role("button", name="undo").click()
    opened.wait()
    check_shown(opened, visitor, "offered-0", "0000111100010001")


def test_everything_but_what_is_painted(opened: Opened, visitor: Visitor) -> None:
    tab = opened.tab
    tab.get_by_role("button", name="everything but").click()
    tab.wait_for_timeout(300)
    assert tab.inner_text("#status") == "Everything is hidden: paint what is to stay visible."
    assert opened.score(0) == ""
    tab.mouse.click(*opened.patch(2, 1))
    opened.wait()
    check_shown(opened, visitor, "offered-0", "1111111110111111")


def test_the_keyboard_alone_paints_and_chooses(opened: Opened, visitor: Visitor) -> None:
    tab = opened.tab

    def reach(selector: str) -> None:
        for _ in range(60):
            if tab.evaluate(f"document.activeElement.matches({selector!r})"):
                return
            tab.keyboard.press("Tab")
        pytest.fail(f"{selector} cannot be reached by Tab")

    reach("input[name=image]")
    tab.keyboard.press("ArrowRight")
    opened.wait()
    assert tab.inner_text("#about").startswith(visitor.demo.album.offered[1].label)
    reach("button[data-kind=grid]")
    tab.keyboard.press("Enter")
    opened.wait()
    reach("#ratio")
    for _ in range(5):
        tab.keyboard.press("ArrowLeft")
    opened.wait()
    assert opened.mask.count("1") == 8
    assert tab.get_attribute("#ratio", "aria-valuetext") == "50 %"
    assert tab.get_attribute("button[data-kind=grid]", "aria-pressed") == "true"
    before = opened.mask
    reach("canvas.brush")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Space")
    state = "visible" if before[6] == "1" else "hidden"
    assert tab.inner_text("#spoken") == f"row 2, column 3: {state}"
    opened.wait()
    check_shown(opened, visitor, "offered-1", before[:6] + ("0" if before[6] == "1" else "1") + before[7:])
    assert tab.inner_text("#spoken").startswith("PSNR of hidden pixels: coarse ")
    tab.keyboard.press("Control+z")
    opened.wait()
    assert opened.mask == before


def test_touch_paints(browser: Browser, visitor: Visitor) -> None:
    opened = Opened(browser, f"http://127.0.0.1:{visitor.port}/", 360, has_touch=True, is_mobile=True)
    opened.tab.get_by_role("button", name="nothing").tap()
    opened.wait()
    opened.tab.locator("canvas.brush").scroll_into_view_if_needed()
    opened.tab.touchscreen.tap(*opened.patch(0, 2))
    opened.wait()
    check_shown(opened, visitor, "offered-0", "0010000000000000")
    assert opened.wrong == []
    opened.context.close()


def test_a_method_is_switched_off_and_on_and_only_those_shown_are_asked(opened: Opened, visitor: Visitor) -> None:
    tab, asked = opened.tab, list[str]()
    tab.on("request", lambda request: asked.append(request.post_data or "") if "/answer" in request.url else None)
    tab.get_by_role("checkbox", name="coarse").uncheck()
    opened.wait()
    assert tab.locator("figure[data-method='0']").is_hidden()
    assert '"methods":[1]' in asked[-1]
    tab.get_by_role("checkbox", name="coarse").focus()
    tab.keyboard.press("Space")
    opened.wait()
    assert '"methods":[0,1]' in asked[-1]
    check_shown(opened, visitor, "offered-0", opened.mask)


def test_whole_outputs_and_errors_are_shown(opened: Opened, visitor: Visitor) -> None:
    output = filled(visitor, "offered-0", opened.mask, 0).output.numpy().astype(np.float64)
    opened.tab.get_by_role("radio", name="whole output").check()
    opened.tab.wait_for_timeout(200)
    assert (opened.pixels(0)[:3] == output).all()
    opened.tab.get_by_role("radio", name="error of hidden pixels").check()
    opened.tab.wait_for_timeout(200)
    photograph = visitor.demo.album.offered[0].views[0].numpy().astype(np.float64)
    marks = np.array([mark == "1" for mark in opened.mask]).reshape(4, 4)
    hidden = np.kron(marks, np.ones((8, 8))).astype(bool)
    shown = opened.pixels(0)
    assert (shown[3] == np.where(hidden, 255, 40)).all()
    error = np.minimum(1, np.abs(output - photograph).mean(0) / 127.5)
    for channel in range(3):
        expected = np.interp(error, np.linspace(0, 1, 5), HEAT[:, channel])
        assert np.abs(shown[channel] - expected)[hidden].max() < 1


def test_a_file_is_chosen_dropped_and_pasted(opened: Opened, visitor: Visitor) -> None:
    tab, encoded = opened.tab, png()
    tab.set_input_files("#file", {"name": "mine.png", "mimeType": "image/png", "buffer": encoded})
    opened.wait()
    key = visitor.demo.album.add(encoded).key
    about = "mine.png: 48 x 40 pixels, scaled and cropped in the middle to 32 x 32"
    assert tab.inner_text("#about") == about
    check_shown(opened, visitor, key, opened.mask)
    for event in ("drop", "paste"):
        other = png((40, 50 + len(event)))
        tab.evaluate(
            """([kind, bytes]) => {
                const carried = new DataTransfer();
                carried.items.add(new File([new Uint8Array(bytes)], `${kind}ed.png`, { type: "image/png" }));
                const made = kind === "drop"
                  ? new DragEvent("drop", { dataTransfer: carried, bubbles: true, cancelable: true })
                  : new ClipboardEvent("paste", { clipboardData: carried, bubbles: true });
                document.body.dispatchEvent(made);
            }""",
            [event, list(other)],
        )
        opened.wait()
        assert tab.inner_text("#about").startswith(f"{event}ed.png: 40 x {50 + len(event)} pixels")
        check_shown(opened, visitor, visitor.demo.album.add(other).key, opened.mask)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("page.html", b"<script>alert(1)</script>", "no image of a known format"),
        ("empty.png", b"", "an empty file"),
        ("cut.png", png()[:2000], "truncated"),
    ],
)
def test_a_file_that_is_no_picture_is_a_sentence_and_the_page_goes_on(
    browser: Browser, visitor: Visitor, name: str, content: bytes, sentence: str
) -> None:
    opened = Opened(browser, f"http://127.0.0.1:{visitor.port}/")
    opened.tab.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})
    opened.tab.wait_for_timeout(500)
    assert sentence in opened.tab.inner_text("#problem")
    opened.tab.get_by_role("button", name="grid").click()
    opened.wait()
    assert opened.tab.inner_text("#problem") == ""
    check_shown(opened, visitor, "offered-0", opened.mask)
    assert all("422" in each for each in opened.wrong)  # the browser's own note on the refused request
    opened.context.close()


def test_a_photograph_that_the_server_has_forgotten_is_sent_again(opened: Opened, visitor: Visitor) -> None:
    opened.tab.set_input_files("#file", {"name": "mine.png", "mimeType": "image/png", "buffer": png((33, 44))})
    opened.wait()
    visitor.demo.album._sent.clear()
    opened.tab.get_by_role("button", name="block").click()
    opened.wait()
    assert opened.tab.inner_text("#problem") == ""
    assert opened.score(0).endswith(" dB")
    opened.wrong = [each for each in opened.wrong if "410" not in each]


def test_the_result_is_saved_as_a_picture(opened: Opened) -> None:
    with opened.tab.expect_download() as saved:
        opened.tab.get_by_role("button", name="Save as PNG").click()
    assert saved.value.suggested_filename.startswith("demo_held-out_image_")
    with Image.open(io.BytesIO(Path(saved.value.path()).read_bytes())) as picture:
        assert picture.format == "PNG"
        assert picture.width == 4 * 256 + 3 * 8  # original, masked, two methods
        middles = [picture.convert("RGB").crop((264 * place, 0, 264 * place + 256, 256)) for place in range(4)]
    assert len({each.tobytes() for each in middles}) == 4


@pytest.mark.parametrize("width", [360, 1280, 2560])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("is_shared", [False, True])
def test_the_page_fits_and_asks_nobody_else(
    browser: Browser, visitor: Visitor, shared: str, width: int, scheme: str, is_shared: bool
) -> None:
    address = shared if is_shared else f"http://127.0.0.1:{visitor.port}/"
    opened = Opened(browser, address, width, color_scheme=scheme, offline=is_shared)
    assert opened.tab.evaluate("document.documentElement.scrollWidth") <= width
    paper = opened.tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    assert (opened.wrong, opened.elsewhere) == ([], [])
    opened.context.close()


def test_a_shared_page_shows_each_image_under_each_mask_without_a_server(browser: Browser, shared: str) -> None:
    opened = Opened(browser, shared, offline=True)
    answers = opened.tab.evaluate("content.answers")
    opened.tab.locator("input[name=image]").nth(1).focus()
    opened.tab.keyboard.press("Space")
    opened.tab.get_by_role("radio", name="grid, 75 %").check()
    opened.wait()
    for method in (0, 1):
        assert opened.score(method) == f"{answers[1][5][method]['psnr']:.2f} dB"
    assert opened.mask == opened.tab.evaluate("content.masks[5].mask")
    assert opened.tab.locator("canvas.brush, input[type=file], input[type=range]").count() == 0
    assert (opened.wrong, opened.elsewhere) == ([], [])
    opened.context.close()


def test_everything_has_a_name_for_a_screen_reader(opened: Opened) -> None:
    unnamed = opened.tab.evaluate(
        """[...document.querySelectorAll('input, button, canvas[role]')]
        .filter((each) => !(each.getAttribute('aria-label') || each.labels?.[0]?.textContent.trim()
            || each.textContent.trim()))
        .map((each) => each.outerHTML)"""
    )
    assert unnamed == []
    ids = opened.tab.eval_on_selector_all("[id]", "all => all.map((each) => each.id)")
    assert len(ids) == len(set(ids))
    assert opened.tab.get_attribute("canvas.brush", "tabindex") == "0"


def test_without_offered_images_it_begins_with_a_photograph_of_ones_own(browser: Browser, runs: list[Path]) -> None:
    with serving(runs, count=0) as visitor:
        opened = Opened(browser, f"http://127.0.0.1:{visitor.port}/")
        assert opened.tab.inner_text("#status") == "Choose, drop or paste a photograph to begin."
        assert opened.score(0) == ""
        encoded = png()
        opened.tab.set_input_files("#file", {"name": "mine.png", "mimeType": "image/png", "buffer": encoded})
        opened.wait()
        check_shown(opened, visitor, visitor.demo.album.add(encoded).key, opened.mask)
        assert opened.wrong == []
        opened.context.close()


def test_a_demo_that_has_ended_is_a_sentence(browser: Browser, runs: list[Path]) -> None:
    with serving(runs, count=1) as visitor:
        opened = Opened(browser, f"http://127.0.0.1:{visitor.port}/")
    opened.tab.get_by_role("button", name="nothing").click()
    opened.tab.wait_for_timeout(500)
    assert opened.tab.inner_text("#problem").startswith("The demo does not answer; it may have been ended")
    opened.context.close()
