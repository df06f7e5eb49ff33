"""The house keeps its order: who may import whom, how large a file may be, what a name promises."""

import ast
import sys
from pathlib import Path

import pytest

from perceptual_mae import _HOMES

ROOT = Path(__file__).parents[1]
PACKAGES = ("perceptual_mae", "discriminators")

# From the ground up; a module may import from its own floor and from those below.
FLOORS = (
    (
        "errors",
        "images",
        "randomness",
        "layers",
        "schedule",
        "mistakes",
        "paper",
        "figures",
        "foreign_weights",
        "fetching",
    ),
    (
        *("losses", "loss_networks", "vit", "masking", "encoder", "decoder", "heads", "skips", "sizes"),
        *("reconstruction", "relative_positions", "stochastic_depth", "cross_attention"),
    ),
    ("generator",),
    ("comparison", "balance", "adversary", "gradients", "scalars"),
    ("objective", "data", "grids", "attention_maps", "choices"),
    ("sections",),
    ("checks",),
    ("config",),
    ("build", "checkpoint", "folder", "tracking", "health", "interrupts", "optimizers", "summary"),
    ("run", "warm_start"),
    ("trainer", "snapshot", "evaluation"),
    ("step_counts", "step_kinds", "step_parts"),
    ("assembly",),
    ("pretraining",),
    ("report",),
    ("sweep",),
    ("bench",),
    ("bench_report",),
    ("cli",),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

TOUCH_ACCELERATE = {"trainer", "tracking", "evaluation", "snapshot", "assembly"}
NETWORKS = {
    "vit",
    "relative_positions",
    "loss_networks",
    "encoder",
    "decoder",
    "cross_attention",
    "heads",
    "skips",
    "generator",
}


def python_files() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imports_of(path: Path) -> set[str]:
    """List the dotted modules a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name comes from"
            assert node.module
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "perceptual_mae" else parts[0]


def rooms_imported(path: Path) -> set[str]:
    dotted = [name.split(".") for name in imports_of(path)]
    own = [_HOMES.get(parts[1], parts[1]) for parts in dotted if parts[0] == "perceptual_mae" and len(parts) > 1]
    return {room for room in own if room in FLOOR_OF}


OWN_FILES = [path for path in python_files() if path.relative_to(ROOT).parts[0] == "perceptual_mae"]


@pytest.mark.parametrize("path", OWN_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_its_own_floor_and_below(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return  # the front door names everything and loads nothing
    assert room in FLOOR_OF, f"{room} has no floor yet: give it one in {Path(__file__).name}"
    above = {other for other in rooms_imported(path) if FLOOR_OF[other] > FLOOR_OF[room]}
    assert not above, f"{room} imports from above: {sorted(above)}"


@pytest.mark.parametrize("path", sorted((ROOT / "discriminators").glob("*.py")), ids=lambda path: path.name)
def test_discriminators_are_usable_alone(path: Path) -> None:
    allowed = {"discriminators", "torch", "kornia", "einops"} | set(sys.stdlib_module_names)
    foreign = {name.split(".")[0] for name in imports_of(path)} - allowed
    assert not foreign


def test_losses_see_tensors_and_no_networks_nor_each_other() -> None:
    for path in (ROOT / "perceptual_mae/losses").glob("*.py"):
        others = {name for name in imports_of(path) if name.startswith(("perceptual_mae.losses", "discriminators"))}
        assert not others, path.name
        assert rooms_imported(path) <= {"images"}, path.name


def test_networks_know_neither_losses_nor_configuration() -> None:
    for path in OWN_FILES:
        if room_of(path) in NETWORKS:
            assert not rooms_imported(path) & {"losses", "config", "objective", "schedule"}, path.name


def test_only_the_training_rooms_touch_accelerate() -> None:
    users = [path for path in OWN_FILES if "accelerate" in {name.split(".")[0] for name in imports_of(path)}]
    assert {room_of(path) for path in users} <= TOUCH_ACCELERATE


def test_files_are_small() -> None:
    sizes = sorted(len(path.read_text().splitlines()) for path in python_files())
    assert sizes[-1] <= 400
    assert sizes[len(sizes) // 2] <= 150


def test_no_file_is_a_drawer() -> None:
    drawers = {"utils", "util", "common", "core", "base", "misc", "helpers"}
    assert not {part for path in python_files() for part in path.relative_to(ROOT).with_suffix("").parts} & drawers


def test_packages_log_and_only_the_command_line_prints() -> None:
    for path in python_files():
        if room_of(path) == "cli":
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"], path


def test_every_public_name_loads() -> None:
    import perceptual_mae

    for name in perceptual_mae.__all__:
        assert getattr(perceptual_mae, name) is not None
    assert len(perceptual_mae.__all__) <= 16
