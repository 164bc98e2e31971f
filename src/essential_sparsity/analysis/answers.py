"""How right an answer in words is: exact match and F1 of SQuAD's official script (Rajpurkar et al. 2016).

Both compare answers without capitals, punctuation, articles and surplus blanks, and take the best of all references.
Where nothing is left of an answer or a reference, F1 is the exact match, as in the script for v2.0.
"""

import re
import string
from collections import Counter
from collections.abc import Iterable

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(text: str) -> str:
    """Give what is compared of an answer: small letters, no ASCII punctuation, no articles, single blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, references: Iterable[str]) -> float:
    """Give 1 where the normalised answer is one of the normalised references, else 0."""
    return float(normalised(answer) in {normalised(reference) for reference in references})


def token_f1(answer: str, references: Iterable[str]) -> float:
    """Give the harmonic mean of precision and recall of the answer's words, at the reference where it is largest."""
    words = normalised(answer).split()
    return max(_f1(words, normalised(reference).split()) for reference in references)


def _f1(words: list[str], wanted: list[str]) -> float:
    if not words or not wanted:
        return float(words == wanted)
    num_common = sum((Counter(words) & Counter(wanted)).values())
    return 2 * num_common / (len(words) + len(wanted))
