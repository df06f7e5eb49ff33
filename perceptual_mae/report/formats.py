"""Tables as Markdown and as LaTeX (booktabs)."""

from collections.abc import Sequence

from perceptual_mae.report.markdown_table import markdown_table
from perceptual_mae.report.tables import DIFFERS, MISSING, Row, Table

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "±": r"$\pm$",
    DIFFERS: r"$\neq$",
    "†": r"\dag{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def to_markdown(title: str, tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Return a page: the title, each table under its own, notes as lists."""
    parts = [f"# {title}"]
    for table in tables:
        rows = [[f"*{row.label}*" if row.is_paper else row.label, *row.cells] for row in table.rows]
        lines = [[cell.replace("|", r"\|") for cell in line] for line in (table.header, *rows)]
        parts += [f"## {table.title}", markdown_table(lines[0], lines[1:])]
        parts += ["\n".join(f"- {note}" for note in table.notes)] if table.notes else []
    parts += ["## Notes", "\n".join(f"- {note}" for note in notes)] if notes else []
    return "\n\n".join(parts) + "\n"


def to_latex(title: str, tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Return a table environment for each table; the page needs \\usepackage{booktabs}. Notes are comments."""
    parts = [f"% {title}; needs \\usepackage{{booktabs}}", *(f"% {note}" for note in notes)]
    for table in tables:
        columns = "l" + "r" * (len(table.header) - 1)
        parts += ["", *(f"% {note}" for note in table.notes)]
        parts += [r"\begin{table}", r"\centering", rf"\caption{{{escape(f'{title}: {table.title}')}}}"]
        parts += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _line([escape(cell) for cell in table.header])]
        parts += [r"\midrule", *(_row(row) for row in table.rows), r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(" ".join(part.splitlines()) for part in parts) + "\n"


def escape(text: str) -> str:
    """Return text as LaTeX prints it, letter by letter."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _row(row: Row) -> str:
    label = rf"\textit{{{escape(row.label)}}}" if row.is_paper else escape(row.label)
    return _line([label, *("--" if cell == MISSING else escape(cell) for cell in row.cells)])


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
