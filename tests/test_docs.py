"""What the documents show is what happens."""

import ast
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from perceptual_mae.cli import app
from perceptual_mae.cli.options import split_layers
from perceptual_mae.config.from_signature import option_docs
from perceptual_mae.config.layers import list_methods, list_recipes
from perceptual_mae.config.parsing import load_config
from perceptual_mae.errors import UserError
from perceptual_mae.losses import TERMS, Term
from perceptual_mae.sweep.grid import make_cells, parse_axis
from test_architecture import FLOORS

ROOT = Path(__file__).parents[1]
TRAINER = ROOT / "perceptual_mae/training/trainer.py"
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
RESULTS = sorted(f"docs/results/{path.name}" for path in (ROOT / "docs/results").glob("*.md"))
COMMANDS = typer.main.get_command(app)

# Words of nobody's trade, each with what to say instead.
PRIVATE = {
    r"mend(s|ed|ing)?": "fix",
    r"verdicts?": "discriminator output",
    r"judg(e|es|ed|ing|ement)": "discriminator loss",
    r"sever(s|ed|ing)?": "detach",
    r"eyes?": "feature extractor",
    r"drowns?": "dominates",
    r"moment of (the|a) run": "progress",
    r"the house|rooms?": "packages and layers",
    r"at hand": "installed, available",
    r"one answer|same answer": "mode collapse",
    r"look(s|ed|ing)? (at|through|again)": "attend to, read, be shown",
}


def fences(document: str) -> list[tuple[str, str]]:
    """Return the fenced blocks of a page: language and contents."""
    text = (ROOT / document).read_text()
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def blocks(document: str, language: str) -> list[str]:
    """Return the contents of fenced blocks of a language ("": of none)."""
    return [contents for named, contents in fences(document) if named == language]


def shown_commands(document: str) -> list[str]:
    """Return the lines of fenced and indented blocks that call pmae, without comments, from the command's name on."""
    text = (ROOT / document).read_text()
    fenced = blocks(document, "")
    indented = re.findall(r"^ {4}(?=\S)((?:.*\\\n)*.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M), re.M)
    lines = [line for block in [*fenced, *indented] for line in block.replace("\\\n", " ").splitlines()]
    found = [re.search(r"(?:^\$? *|run (?:--no-sync )?|-m )(?:pmae|perceptual_mae\.cli) (.*)", line) for line in lines]
    return [match[1].partition(" #")[0].strip() for match in found if match]


def mentioned_commands(document: str) -> list[str]:
    """Return the commands that running text names, which may leave arguments out."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / document).read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"(?<!`)`pmae ([^`]+)`(?!`)", text)


def find_command(words: list[str]) -> tuple[typer.core.TyperCommand, list[str]]:
    """Return the command that words name, and what follows; the alternatives of `list|check` must all exist."""
    command = COMMANDS
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        names = words[0].split("|")
        assert set(names) <= set(command.commands), f"pmae has no command {words[0]}"
        command, words = command.commands[names[0]], words[1:]
    return command, words


def options_of(command: typer.core.TyperCommand) -> set[str]:
    named = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return {*named, "--help", "-h"}


@pytest.fixture(scope="module")
def folder_with_a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the quick start has been run, on next to no images."""
    from perceptual_mae import pretrain

    folder = tmp_path_factory.mktemp("docs")
    small = ["data.num_images=64", "training.epochs=1", "training.epoch_images=16", "training.batch_size=16"]
    pretrain(load_config(["quickstart", *small, "evaluation.limit=16"]), folder / "runs/quickstart", quiet=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("document", [page for page in PAGES if blocks(page, "python")])
def test_python_of_a_page_runs_from_top_to_bottom(
    document: str, folder_with_a_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder_with_a_run)
    names: dict[str, object] = {}
    for block in blocks(document, "python"):
        if "def step(self" not in block:  # a method, quoted
            exec(compile(block, document, "exec"), names)


@pytest.mark.slow
def test_what_the_encoders_page_shows_of_transformers_runs(
    folder_with_a_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its block is called py: importing transformers takes longer than the rest of the page."""
    monkeypatch.chdir(folder_with_a_run)
    names: dict[str, object] = {}
    exec(blocks("docs/encoder.md", "python")[0], names)
    exec("from pathlib import Path\nfrom perceptual_mae.interop.exporting import export_run", names)
    for block in blocks("docs/encoder.md", "py"):
        exec(compile(block, "docs/encoder.md", "exec"), names)


def test_the_readme_quotes_the_step_whole() -> None:
    source = TRAINER.read_text()
    classes = [each for each in ast.parse(source).body if isinstance(each, ast.ClassDef)]
    trainer = next(each for each in classes if each.name == "Trainer")
    step = next(each for each in trainer.body if isinstance(each, ast.FunctionDef) and each.name == "step")
    assert step.end_lineno is not None
    lines = source.splitlines()[step.lineno - 1 : step.end_lineno]
    (quoted,) = (block for block in blocks("README.md", "python") if "def step" in block)
    assert quoted.strip() == textwrap.dedent("\n".join(lines))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_loss_that_the_readme_adds_trains_by_two_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its function and its line go into the modules they belong to; the command that it shows must then be valid."""
    text = (ROOT / "README.md").read_text()
    (function,) = (block for block in blocks("README.md", "") if block.startswith("def "))
    ((name, line),) = re.findall(r'`"(\w+)": (Term\(.*?\)\)),`', text)
    names: dict[str, object] = {}
    exec("from torch import Tensor\nfrom perceptual_mae.images import Pyramid\n" + function, names)
    term = eval(line, {"Term": Term} | names)
    monkeypatch.delitem(TERMS, name, raising=False)  # somebody may have added it in earnest
    with pytest.raises(UserError):
        load_config(["quickstart", f"losses.{name}=0.5"])
    monkeypatch.setitem(TERMS, name, term)
    section = load_config(["quickstart", f"losses.{name}=0.5"]).losses[name]
    assert section.weight == 0.5
    assert section.options()
    assert set(option_docs(term.function)) == set(section.options())
    assert f"pmae pretrain quickstart losses.{name}=0.5" in text


@pytest.mark.parametrize("document", [*PAGES, "CHANGELOG.md", *RESULTS])
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        assert file.exists(), f"{document}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{document}: {target}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    for page in PAGES:
        if page.startswith("docs/") and page != "docs/README.md":
            assert f"]({page.removeprefix('docs/')})" in index, page


@pytest.fixture
def folder_with_shown_files(tmp_path: Path) -> Path:
    """A folder with the shipped layers, as in a checkout, and the files that the pages show under their names."""
    for page in PAGES:
        for block in [*blocks(page, "yaml"), *blocks(page, "python")]:
            if named := re.match(r"# (\S+\.(?:yaml|py))", block):
                (tmp_path / named[1]).write_text(block)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


def configurations(command: str, words: list[str]) -> Iterator[list[str]]:
    """Yield the layers and overrides of every configuration that a command line names."""
    parsed = COMMANDS.commands[command].make_context(command, list(words)).params  # type: ignore[attr-defined]
    layers = list(parsed.get("arguments") or [])
    if parsed.get("from_checkpoint") is not None:  # a run in place of layers
        layers = layers[1:]
    if command == "sweep":
        axes = [parse_axis(text) for text in parsed["grid"] or []]
        yield from (cell.arguments(layers) for cell in make_cells(axes, ()))
    elif command in ("pretrain", "configs", "bench"):
        yield layers
        yield from (split_layers(joined) for joined in parsed.get("against") or [])


@pytest.mark.parametrize(
    ("document", "line"), [(page, line) for page in PAGES for line in dict.fromkeys(shown_commands(page))]
)
def test_a_shown_command_is_one_that_pmae_takes(
    document: str, line: str, folder_with_shown_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder_with_shown_files)
    words = shlex.split(re.split(r" (?:\||>|&&) ?", line)[0])
    command, rest = find_command(words)
    if set(rest) & {"--help", "--version"}:
        assert set(rest) <= options_of(command)
        return
    command.make_context(words[0], list(rest))
    if words[0] in ("pretrain", "sweep", "bench", "configs"):
        for layers in configurations(words[0], rest):
            load_config(layers)


@pytest.mark.parametrize(
    ("document", "line"), [(page, line) for page in PAGES for line in dict.fromkeys(mentioned_commands(page))]
)
def test_a_command_that_the_text_mentions_exists_with_its_options(document: str, line: str) -> None:
    command, rest = find_command(line.split())
    named = {word.partition("=")[0] for word in rest if word.startswith("-")}
    assert named <= options_of(command), f"{document}: {line}"


@pytest.mark.parametrize("document", PAGES)
def test_pages_speak_the_words_of_the_trade(document: str) -> None:
    text = (ROOT / document).read_text()
    prose = re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))
    for number, line in enumerate(prose.splitlines(), 1):
        for word, instead in PRIVATE.items():
            assert not re.search(rf"\b(?:{word})\b", line, re.IGNORECASE), f"{document}, line {number}: say {instead}"


@pytest.mark.parametrize("layer", [*list_recipes(), *list_methods()], ids=lambda layer: layer.name)
def test_every_value_of_a_preset_says_whose_it_is(layer) -> None:
    for line in layer.path.read_text().splitlines():
        states_a_value = not line.lstrip().startswith("#") and not line.rstrip().endswith(":") and line.strip()
        if states_a_value:
            assert re.search(r"# (paper|MAE|improved MAE|Art MAE|KTH|VQGAN|R3GAN|RAE|Projected GANs|ours)\b", line), (
                f"{layer.path.name}: {line}"
            )
    assert isinstance(yaml.safe_load(layer.path.read_text()), dict)


def architecture_rows(pattern: str) -> list[tuple[str, str]]:
    return re.findall(pattern, (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)


def test_the_architecture_page_has_the_layers_that_imports_are_held_to() -> None:
    rows = architecture_rows(r"^\| (\d+) \| ([^|]*) \|")
    assert [set(re.findall(r"`(\w+)`", names)) for _, names in rows] == [set(floor) for floor in FLOORS]


def test_the_architecture_page_names_modules_that_exist() -> None:
    for package, cell in architecture_rows(r"^\| `(\w+)` \| (.*) \|$"):
        folder = ROOT / ("" if package == "discriminators" else "perceptual_mae") / package
        for name in re.findall(r"`([a-z]\w*/?)`", cell):
            assert (folder / f"{name}.py").exists() or (folder / name).is_dir(), f"{package}: {name}"
