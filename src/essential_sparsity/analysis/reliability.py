"""Is a model as often right as it says? Expected calibration error of predicted classes."""

import numpy as np
import pandas as pd

NUM_BINS = 15


def calibration_error(confidence: np.ndarray, right: np.ndarray, *, num_bins: int = NUM_BINS) -> float:
    """Mean of |share right − mean confidence| over bins of equal width, weighted by their rows (Guo et al. 2017).

    `confidence` [N] is the predicted class's probability, `right` [N] whether it is the label. Raises ValueError
    where they differ in length or there are none, and for a confidence outside [0, 1].
    """
    confidence, right = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    if confidence.shape != right.shape or not len(confidence):
        raise ValueError(f"{len(confidence)} confidences for {len(right)} answers: give one each, and at least one")
    if not ((confidence >= 0) & (confidence <= 1 + 1e-6)).all():
        raise ValueError(f"confidence={confidence.max():g} lies outside [0, 1]: give probabilities, not logits")
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)  # (low, high], as is usual
    rows = np.bincount(bins, minlength=num_bins)
    gaps = np.bincount(bins, right - confidence, minlength=num_bins)
    return float(np.abs(gaps).sum() / rows.sum())


def calibration_error_of(rows: pd.DataFrame) -> float:
    """Calibration error of prediction rows; NaN where they hold no confidence."""
    if not {"confidence", "label", "prediction"} <= set(rows.columns):
        return float("nan")
    return calibration_error(rows["confidence"].to_numpy(), (rows["label"] == rows["prediction"]).to_numpy())
