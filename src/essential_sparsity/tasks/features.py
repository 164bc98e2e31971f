"""Frozen features of images: what a timm model pools before its classifier."""

from typing import Any

from torch import Tensor


def pooled_features(model: Any, images: Tensor) -> Tensor:
    """Give the features [N, D] before the classifier of images [N, C, H, W]."""
    return model.forward_head(model.forward_features(images), pre_logits=True)
