"""The paper's numbers, entered a second time as its tables print them, and kept apart from ours."""

from dataclasses import fields
from math import log10

from perceptual_mae.config.layers import list_methods
from perceptual_mae.report.published import PAPER, RECONSTRUCTION, TRANSFER, Column, Published

# L1 PSNR SSIM IS FID (Table 1) | time params (Table 4) | LP B, FT B, FT L, box, mask, mIoU (Tables 2 and 3)
PRINTED = """
mse                 .25 .38 .76 6.33 42.7 | .23 113 | 67.8 83.6 85.9 50.3 44.9 48.1
ms_ssim_l1          .21 .41 .82 8.01 31.6 |   -   - | 71.2 84.1 86.3 50.8 45.1 48.8
ls_gan_p            .16 .53 .92 16.2 28.2 | .54 113 | 72.5 84.5 86.5 51.4 45.4 49.2
msg_gan_p           .11 .55 .94 32.1 19.0 |   -   - | 75.6 85.3 87.2 52.3 45.8 49.7
stylegan2_ada_p     .06 .58 .91 36.8 10.3 |   1 119 | 78.1 86.2 88.1 53.5 46.1 50.4
dvae_p                -   -   -    -    - |   -   - | 79.8 86.9 88.6 53.9 46.4 50.9
ls_gan                -   -   -    -    - |   -   - |    - 83.3 85.3    -    -    -
msg_gan               -   -   -    -    - |   -   - |    - 84.7 86.5    -    -    -
mae_msg_gan_p         -   -   -    -    - |   -   - |    - 83.2 85.6 50.9 45.9 49.3
mae_stylegan2_ada_p   -   -   -    -    - |   -   - |    - 84.5 86.2 51.8 45.5 49.1
"""


def number(text: str) -> float | None:
    return None if text == "-" else float(text)


def test_every_number_is_the_papers():
    lines = [line.replace("|", "").split() for line in PRINTED.strip().splitlines()]
    assert [words[0] for words in lines] == list(PAPER)
    for name, *words in lines:
        entered = [getattr(PAPER[name], column.field) for column in (*RECONSTRUCTION, *TRANSFER)]
        assert entered == [number(word) for word in words], name


def test_each_number_has_one_column_and_is_shown_as_printed():
    columns = (*RECONSTRUCTION, *TRANSFER)
    assert sorted(column.field for column in columns) == sorted(field.name for field in fields(Published))
    shown = " ".join(column.show(PAPER["stylegan2_ada_p"]) for column in columns)
    assert shown == "0.06 0.58 0.91 36.8 10.3 1.00 119 78.1 86.2 88.1 53.5 46.1 50.4"
    assert [column.show(PAPER["mse"]) for column in RECONSTRUCTION][3] == "6.33"
    assert Column("l1", "L1").show(None) == Column("l1", "L1").show(PAPER["ls_gan"]) == "-"


def test_rows_belong_to_shipped_methods_and_controls_of_ours_have_none():
    shipped = {method.name for method in list_methods()}
    assert set(PAPER) - shipped <= {"dvae_p"}
    assert {"l1", "mse_norm_pix"} <= shipped - set(PAPER)


def test_the_published_psnr_cannot_be_decibels():
    """Errors on [0, 1] have squares below themselves, so that the mean square is at most L1."""
    for published in PAPER.values():
        if published.psnr is not None and published.l1 is not None:
            assert published.psnr < -10 * log10(published.l1)
