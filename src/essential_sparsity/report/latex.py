"""Tables as LaTeX: booktabs, every name as text, whatever it holds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from essential_sparsity.runs import atomic_path

SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--", "—": "---", "…": r"\ldots{}", "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "≤": r"$\leq$",
    "≥": r"$\geq$", "≈": r"$\approx$", "→": r"$\to$", "⊂": r"$\subset$", "⊃": r"$\supset$",
    "√": r"$\surd$", "·": r"$\cdot$",
    "ε": r"$\varepsilon$", "ρ": r"$\rho$", "κ": r"$\kappa$", "σ": r"$\sigma$", "₁": "$_1$", "₂": "$_2$", "²": "$^2$",
}  # fmt: skip


def latex_text(value: Any) -> str:
    """Text that LaTeX sets as it stands."""
    return "".join(SPECIAL.get(letter, letter) for letter in str(value))


def latex_table(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    r"""A tabular with booktabs' three rules, to `\input` into a table; needs \usepackage{booktabs} and no other."""
    numeric = [all(looks_like_number(line[i]) for line in lines) for i in range(len(header))]
    columns = "".join("r" if number else "l" for number in numeric)
    rows = [" & ".join(latex_text(cell) for cell in row) + r" \\" for row in (header, *lines)]
    return "\n".join([
        rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule",
        r"\end{tabular}", "",
    ])  # fmt: skip


def write_latex(path: Path, header: Sequence[str], lines: Sequence[Sequence[Any]]) -> None:
    """Write a table as LaTeX, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(latex_table(header, lines), encoding="utf-8")


def looks_like_number(cell: Any) -> bool:
    """Whether a cell is a number as readers write it: `1,024`, `38 %`, `+0.01`, `–`."""
    text = str(cell).strip(" %+…[](),–")
    return not text or text.replace(",", "").replace(".", "").replace("-", "").replace("e", "").strip(" …+").isdigit()
