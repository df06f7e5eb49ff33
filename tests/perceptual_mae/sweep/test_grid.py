"""The cells of a grid: their values, names and arguments."""

import pytest

from perceptual_mae.errors import UserError
from perceptual_mae.sweep.grid import Axis, make_cells, parse_axis, split_values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-3,2e-3", ["1e-3", "2e-3"]),
        ("{balanced: 0.1, cap: 1}, 0.5", ["{balanced: 0.1, cap: 1}", "0.5"]),
        ("[1, [2, 3]],null", ["[1, [2, 3]]", "null"]),
        ("'a,b',\"c,}\"", ["'a,b'", '"c,}"']),
    ],
)
def test_commas_inside_brackets_and_quotes_belong_to_a_value(text, values):
    assert split_values(text) == values


def test_cells_are_all_combinations_seeds_fastest():
    cells = make_cells([Axis("a.lr", ("1", "2")), Axis("b.ratio", ("x",))], [0, 3])
    assert [cell.name for cell in cells] == [
        *("lr-1_ratio-x_seed-0", "lr-1_ratio-x_seed-3", "lr-2_ratio-x_seed-0", "lr-2_ratio-x_seed-3")
    ]
    assert cells[1].arguments(["base", "k=v"]) == ["base", "k=v", "a.lr=1", "b.ratio=x", "training.seed=3"]
    assert [cell.name for cell in make_cells([], [1])] == ["seed-1"]
    assert make_cells([Axis("a", ("1",))], [])[0].seed is None


def test_layers_are_laid_over_those_of_the_command():
    cells = make_cells([Axis("layer", ("mse", "some/where/mine.yaml"))], [])
    assert [cell.name for cell in cells] == ["layer-mse", "layer-mine"]
    assert cells[0].arguments(["cifar10", "k=v"]) == ["cifar10", "mse", "k=v"]


@pytest.mark.parametrize(
    ("axes", "names"),
    [
        ([Axis("a.lr", ("1",)), Axis("b.lr", ("2",))], ["a.lr-1_b.lr-2"]),
        ([Axis("weight", ("{from: 0, to: 1}", "/"))], ["weight-from-0-to-1", "weight-empty"]),
        ([Axis("k", ("{a: 1}", "[a, 1]", "a-1"))], ["k-a-1", "k-a-1~2", "k-a-1~3"]),
    ],
)
def test_names_are_folders_and_no_two_are_alike(axes, names):
    assert [cell.name for cell in make_cells(axes, [])] == names


def test_long_values_make_no_name_that_a_file_system_refuses():
    cells = make_cells([Axis("losses", ("x" * 300, "x" * 301))], [])
    assert len({cell.name for cell in cells}) == 2
    assert all(len(cell.name) <= 100 for cell in cells)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer.lr", "is no key=a,b,c"),
        ("optimizer.lr=", "is no key=a,b,c"),
        ("=1,2", "is no key=a,b,c"),
        ("optimizer.lr=1,,2", "is no key=a,b,c"),
        ("optimizer.lr=1,2,1", "optimizer.lr has 1 twice"),
    ],
)
def test_what_is_no_axis_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_axis(text)


@pytest.mark.parametrize("axes", [[Axis("a", ("1",)), Axis("a", ("2",))], [Axis("training.seed", ("1",))]])
def test_a_key_is_named_once(axes):
    with pytest.raises(UserError, match="is given twice"):
        make_cells(axes, [0])
