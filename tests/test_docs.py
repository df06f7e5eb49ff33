"""What the documents show is what happens."""

import re
from pathlib import Path

import pytest
import yaml

from perceptual_mae.config.layers import list_methods, list_recipes

ROOT = Path(__file__).parents[1]


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def test_the_python_page_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("docs/python.md", "python"):
        exec(compile(block, "docs/python.md", "exec"), names)
    assert (tmp_path / "encoder.pt").exists()


def test_the_step_that_the_readme_quotes_is_the_step() -> None:
    source = re.sub(r"\s+", " ", (ROOT / "perceptual_mae/training/trainer.py").read_text())
    (quoted,) = (block for block in blocks("README.md", "python") if "def step" in block)
    assert re.sub(r"\s+", " ", quoted).strip() in source


def test_the_readme_names_layers_and_files_that_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    shipped = {layer.name for layer in (*list_recipes(), *list_methods())}
    for command in re.findall(r"pmae pretrain ([^\n`]*)", readme):
        words = command.partition("#")[0].split()
        layers = [word for word in words if "=" not in word and not word.startswith("-")]
        layers = [word for word in layers if not word.startswith("runs/") and word.isidentifier()]
        assert set(layers) <= shipped, command
    for path in re.findall(r"\]\(([^)#:]+)\)", readme) + re.findall(r"pretrain (configs/\S+?\.yaml)", readme):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("layer", [*list_recipes(), *list_methods()], ids=lambda layer: layer.name)
def test_every_value_of_a_preset_says_whose_it_is(layer) -> None:
    for line in layer.path.read_text().splitlines():
        states_a_value = not line.lstrip().startswith("#") and not line.rstrip().endswith(":") and line.strip()
        if states_a_value:
            assert re.search(r"# (paper|MAE|improved MAE|Art MAE|KTH|ours)\b", line), f"{layer.path.name}: {line}"
    assert isinstance(yaml.safe_load(layer.path.read_text()), dict)
