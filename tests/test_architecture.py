"""The packages keep their order: who may import whom, how large a file may be, what a name promises."""

import ast
import statistics
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

import perceptual_mae
from perceptual_mae.config import layers

ROOT = Path(__file__).parents[1]
PRODUCT = ROOT / "perceptual_mae"

# From the ground up; a package (or a module at the root) may import from its own floor and from those below.
FLOORS = (
    ("errors", "files", "images", "seeding", "progress", "pages"),
    ("schedules", "masking", "pretrained_weights", "losses"),
    ("generator", "loss_networks"),
    ("objective", "data", "visualization"),
    ("config",),
    ("run",),
    ("interop",),
    ("evaluation",),
    ("training",),
    ("transfer",),
    ("report", "sweep", "benchmark", "demo"),
    ("cli",),
)
FLOOR_OF = {package: number for number, packages in enumerate(FLOORS) for package in packages}
NETWORKS = ("generator", "loss_networks")


def python_files() -> list[Path]:
    return [path for package in ("perceptual_mae", "discriminators") for path in sorted((ROOT / package).rglob("*.py"))]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports_of(path: Path) -> set[str]:
    """List the dotted modules a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name comes from"
            assert node.module
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def package_of(path: Path) -> str:
    return path.relative_to(PRODUCT).with_suffix("").parts[0]


def files_of(package: str) -> list[Path]:
    return [path for path in sorted(PRODUCT.rglob("*.py")) if package_of(path) == package]


def packages_imported(path: Path) -> set[str]:
    parts = [name.split(".") for name in imports_of(path)]
    named = [part[1] for part in parts if part[0] == "perceptual_mae" and len(part) > 1]
    return {perceptual_mae._MODULES.get(name, name).split(".")[0] for name in named}


def test_every_package_has_its_floor() -> None:
    there = {path.stem for path in PRODUCT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__init__"} == set(FLOOR_OF)


@pytest.mark.parametrize("package", FLOOR_OF)
def test_a_package_imports_only_from_its_own_floor_and_below(package: str) -> None:
    for path in files_of(package):
        above = {other for other in packages_imported(path) if FLOOR_OF[other] > FLOOR_OF[package]}
        assert not above, f"{path.relative_to(ROOT)} imports from above: {sorted(above)}"


def test_packages_of_one_floor_do_not_import_each_other_in_circles() -> None:
    arrows = {package: set[str]() for package in FLOOR_OF}
    for package, others in arrows.items():
        for path in files_of(package):
            others |= packages_imported(path) - {package}
    while free := [package for package, others in arrows.items() if not others & set(arrows)]:
        for package in free:
            del arrows[package]
    assert not arrows


def test_discriminators_are_usable_alone() -> None:
    allowed = {"discriminators", "torch", "kornia", "einops", "pydantic"} | set(sys.stdlib_module_names)
    for path in sorted((ROOT / "discriminators").rglob("*.py")):
        assert not {name.split(".")[0] for name in imports_of(path)} - allowed, path.name


def test_losses_see_tensors_and_no_networks_nor_each_other() -> None:
    for path in files_of("losses"):
        assert packages_imported(path) <= ({"images", "losses"} if path.stem == "__init__" else {"images"}), path.name
        assert not [name for name in imports_of(path) if name.startswith("discriminators")], path.name


def test_networks_know_neither_losses_nor_configuration() -> None:
    for path in [path for package in NETWORKS for path in files_of(package)]:
        assert not packages_imported(path) & {"losses", "config", "objective", "schedules"}, path.name


def test_only_training_evaluation_and_transfer_touch_accelerate() -> None:
    for path in PRODUCT.rglob("*.py"):
        if "accelerate" in {name.split(".")[0] for name in imports_of(path)}:
            assert package_of(path) in {"training", "evaluation", "transfer"}, path


def test_files_are_small() -> None:
    sizes = {path: len(path.read_text().splitlines()) for path in python_files()}
    assert not [str(path) for path, size in sizes.items() if size > 400]
    assert statistics.median(sizes.values()) <= 120


def test_few_modules_stand_at_the_root() -> None:
    assert len(list(PRODUCT.glob("*.py"))) <= 10


def test_few_small_files_serve_a_single_other_file() -> None:
    """A file under 40 lines that one other file imports is a hop; a line of a table is none."""
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in python_files()
    }
    users: dict[str, set[Path]] = {name: set() for name in names}
    for path in python_files():
        for name in imports_of(path) & set(names):
            users[name] |= {path} - {names[name]}
    small = [name for name, path in names.items() if len(path.read_text().splitlines()) < 40 and len(users[name]) == 1]
    hops = [name for name in small if "__init__" not in {names[name].stem, *(path.stem for path in users[name])}]
    assert len(hops) <= 6, hops


def test_no_file_is_a_drawer() -> None:
    drawers = {"utils", "util", "common", "core", "base", "misc", "helpers"}
    assert not {part for path in python_files() for part in path.relative_to(ROOT).with_suffix("").parts} & drawers


def test_packages_log_and_only_the_command_line_prints() -> None:
    for path in python_files():
        if "cli" in path.parts:
            continue
        calls = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"], path


UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
PROGRAMS = {"torch.jit.load", "torch.export.load", "torch.package.PackageImporter", "torch.hub.load"}
GUARDED = {
    "perceptual_mae/evaluation/feature_networks/torchscript.py": PROGRAMS,
    "perceptual_mae/interop/graphs.py": {"torch.jit.load"},  # of what it has just written
    "perceptual_mae/config/own_kinds.py": {"importlib.import_module"},
    "perceptual_mae/__init__.py": {"import_module"},  # of this package's own modules
    "perceptual_mae/data/decoding.py": {"importlib.import_module"},  # of pillow_heif, where it is installed
}
"""The places that run what a file or a configuration holds, behind a question of trust."""


@pytest.mark.parametrize(
    "path", [*python_files(), *sorted((ROOT / "scripts").rglob("*.py"))], ids=lambda path: path.name
)
def test_what_a_file_holds_is_executed_in_guarded_places_alone(path: Path) -> None:
    """See SECURITY.md."""
    name = path.relative_to(ROOT).as_posix()
    assert not {module.split(".")[0] for module in imports_of(path)} & UNPICKLERS
    for call in [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]:
        called, keywords = ast.unparse(call.func), {ast.unparse(keyword) for keyword in call.keywords}
        assert called not in {"eval", "exec", "__import__", "compile"}
        assert called not in PROGRAMS | {"importlib.import_module", "import_module"} or called in GUARDED.get(name, ())
        assert called != "torch.load" or "weights_only=True" in keywords
        assert not keywords & {"weights_only=False", "allow_pickle=True", "trust_remote_code=True"}
        if called.startswith("yaml.") and "load" in called:
            assert called == "yaml.safe_load" or "Loader=_Loader" in keywords


def test_the_reader_of_yaml_makes_plain_values_alone() -> None:
    assert issubclass(layers._Loader, yaml.SafeLoader)
    assert {tag for tag in layers._Loader.yaml_constructors if tag} == {
        tag for tag in yaml.SafeLoader.yaml_constructors if tag
    }
    assert not layers._Loader.yaml_multi_constructors


@pytest.mark.parametrize("name", perceptual_mae.__all__)
def test_every_public_name_loads(name: str) -> None:
    assert getattr(perceptual_mae, name) is not None


def test_the_public_names_are_few() -> None:
    assert len(perceptual_mae.__all__) <= 16


@pytest.mark.parametrize(("old", "new"), perceptual_mae._RENAMED.items())
def test_a_public_name_of_the_last_version_still_works_with_a_warning(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"perceptual_mae.{old} is now {new}"):
        assert getattr(perceptual_mae, old) is getattr(perceptual_mae, new)


PRIVATE_WORDS = {
    *("told", "found", "seen", "Moment", "moment", "View", "in_turn", "Eyes", "eyes"),
    *("look", "Look", "look_again", "judge", "learn", "judge_and_learn", "show_real", "sever", "severed", "ends"),
    *("both_halves", "discriminator_half", "generator_half", "path_half", "bare_generator", "bare_discriminator"),
    *("Comparison", "watch", "Watch", "watched", "watched_now", "verdict", "variety", "one_answer", "drowns", "Health"),
    *("capture", "restore", "facts", "greet", "tell", "leave", "farewell", "find_flaw", "find_misfit", "find_misfits"),
    *("check_discriminators_company", "minibatch_deviation", "deviation", "turn_before", "turn_after", "stretch"),
    *("slide", "quarter_turns", "zoom", "SPARED", "Observer", "observers", "see", "lay", "Seen", "Opened", "subjects"),
    *("Extremes", "extremes", "fixed_choice", "shorten", "balanced_share", "mend", "beside", "at_hand"),
}
"""What has a name of the field's own (docs/architecture.md)."""


def identifiers_of(path: Path) -> set[str]:
    """List the names a file defines, uses or passes by keyword; strings such as keys of metrics.jsonl are none."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.arg | ast.keyword):
            names.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
    return names


@pytest.mark.parametrize("package", [*FLOOR_OF, "discriminators"])
def test_identifiers_are_the_fields_words(package: str) -> None:
    files = files_of(package) if package in FLOOR_OF else [path for path in python_files() if package in path.parts]
    used = {str(path.relative_to(ROOT)): identifiers_of(path) & PRIVATE_WORDS for path in files}
    assert not {path: words for path, words in used.items() if words}
