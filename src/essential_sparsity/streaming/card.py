"""What is said of a pruned checkpoint: the model card beside it, and its sizes in words."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from essential_sparsity.streaming.prune import PrunedCheckpoint


def model_card(pruned: "PrunedCheckpoint", parent_name: str) -> str:
    """Give README.md of a pruned checkpoint: sparsity, pruner, the parent's hash, sizes."""
    share = pruned.num_pruned / pruned.num_parameters
    pruner = ", ".join(f"{part} {value}" for part, value in pruned.pruner.items())
    lines = [
        "---",
        "tags: [pruned, sparse]",
        "---",
        "",
        f"# {parent_name}, pruned to sparsity {pruned.sparsity:.6g}",
        "",
        f"{pruned.num_pruned:,} of {pruned.num_prunable:,} prunable weights are exactly zero "
        f"({share:.1%} of all {pruned.num_parameters:,} parameters). Nothing was trained or corrected afterwards.",
        "",
        "| | |",
        "|---|---|",
        f"| pruner | {pruner} |",
        f"| sparsity of the prunable weights | {pruned.sparsity!r} |",
        f"| weights tied at a cut | {pruned.num_ties:,} |",
        f"| parent (sha256 of its weight files) | `{pruned.parent}` |",
        *([f"| masks chosen on other weights | `{pruned.masks_parent}` |"] if pruned.masks_parent else []),
        *(f"| {label} | {value} |" for label, value in sizes(pruned)),
        "",
        "The files have the parent's names, shapes and dtypes, and load like the parent. `masks.safetensors` holds "
        "one bit per prunable weight (1 keeps), `prune.json` what was asked. The parent's own card, where there is "
        "one, is README.parent.md.",
        "",
        "Made by essential_sparsity.",
        "",
    ]
    return "\n".join(lines)


def sizes(pruned: "PrunedCheckpoint") -> list[tuple[str, str]]:
    """Give sizes in words: as stored, and what formats that leave zeros out would take."""
    rows = [
        ("bytes of all tensors", f"{pruned.bytes_dense:,}: zeros take as much room as any weight"),
        ("with a bit per weight and the kept ones", _compared(pruned.bytes_bitmask, pruned.bytes_dense)),
    ]
    if pruned.bytes_two_four is not None:
        rows.append(("stored as 2:4", _compared(pruned.bytes_two_four, pruned.bytes_dense)))
    return rows


def _compared(num_bytes: int, dense: int) -> str:
    return f"{num_bytes:,} ({num_bytes / dense:.1%})"
