"""Tables as LaTeX: booktabs, and every name is text."""

from essential_sparsity.report.latex import latex_table, latex_text, looks_like_number


def test_what_latex_would_read_as_a_command_is_text() -> None:
    assert latex_text(r"a_b & 50 % \input{x} $y^2$ #1 ~") == (
        r"a\_b \& 50 \% \textbackslash{}input\{x\} \$y\textasciicircum{}2\$ \#1 \textasciitilde{}"
    )
    assert latex_text("κ ≤ 0.5 … ε_rel") == r"$\kappa$ $\leq$ 0.5 \ldots{} $\varepsilon$\_rel"


def test_a_table_has_three_rules_and_numbers_are_flush_right() -> None:
    assert latex_table(["curve", "dense"], [["omp", "0.85"], ["random", "–"]]).splitlines() == [
        r"\begin{tabular}{lr}", r"\toprule", r"curve & dense \\", r"\midrule", r"omp & 0.85 \\", r"random & -- \\",
        r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip


def test_numbers_are_told_by_how_they_look() -> None:
    assert all(looks_like_number(cell) for cell in ("1,024", "38 %", "+0.0100", "-1e-3", "–", ""))
    assert not any(looks_like_number(cell) for cell in ("omp", "found", "0.5 points", "[0.2, 0.5]"))
