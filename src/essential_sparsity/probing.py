"""What frozen features are worth: weighted nearest neighbours, a linear classifier, and how far they spread.

Legend: N rows with known labels, Q rows to predict, D features, K classes.
"""

import torch
import torch.nn.functional as functional
from torch import Tensor

CHUNK = 1024
"""Rows that are compared with all known ones at a time."""


def feature_spread(features: Tensor) -> Tensor:
    """Give the deviation over rows of unit features [N, D], times √D: 0 constant, 1 in all directions alike."""
    unit = functional.normalize(features.float(), dim=1)
    return unit.std(0, correction=0).mean() * features.shape[1] ** 0.5


def knn_votes(
    queries: Tensor, known: Tensor, labels: Tensor, *, num_labels: int, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Give the vote shares [Q, K] of each row's k nearest neighbours by cosine, weighted by exp(cosine / temperature).

    Wu et al. 2018, as in DINO's evaluation (arXiv 2104.14294). `queries` [Q, D] and `known` [N, D] have unit rows;
    where there are fewer than k known rows, all vote.
    """
    votes = queries.new_zeros(len(queries), num_labels)
    with torch.autocast(queries.device.type, enabled=False):  # half-precision cosines are too coarse
        for part, share in zip(queries.split(CHUNK), votes.split(CHUNK), strict=True):
            cosines, nearest = (part @ known.T).topk(min(k, len(known)), dim=1)
            share.scatter_add_(1, labels[nearest], ((cosines - 1) / temperature).exp())
    return votes / votes.sum(1, keepdim=True)


def unit_rows(features: Tensor) -> Tensor:
    """Scale each row of features [N, D] to length 1, in fp32."""
    return functional.normalize(features.float(), dim=1)


def linear_predictions(
    known: Tensor, labels: Tensor, queries: Tensor, *, num_labels: int, penalty: float = 1.0
) -> Tensor:
    """Predict classes [Q] by a logistic regression on standardised features [N, D], fitted by L-BFGS from zero.

    The loss is the summed cross-entropy + penalty / 2 · ‖weights‖² (biases are free), as scikit-learn's with C = 1.
    """
    mean, deviation = known.mean(0), known.std(0, correction=0).clamp_min(1e-6)
    inputs, asked = (known - mean) / deviation, (queries - mean) / deviation
    weights = inputs.new_zeros(num_labels, inputs.shape[1]).requires_grad_()
    biases = inputs.new_zeros(num_labels).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights, biases], max_iter=200, tolerance_grad=1e-5, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(functional.linear(inputs, weights, biases), labels)
        value = value + penalty / (2 * len(inputs)) * weights.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return functional.linear(asked, weights, biases).detach().argmax(1)
