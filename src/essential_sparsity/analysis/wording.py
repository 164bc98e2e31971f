"""Numbers in sentences."""


def counted(number: int, noun: str) -> str:
    """Give `1 seed`, `2,000 seeds`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
