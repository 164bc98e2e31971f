"""bf16 products over fp32 weights, with gradients that can be clipped under a fused optimizer."""

from typing import Any

from pytorch_lightning.plugins.precision import MixedPrecision, Precision
from torch.optim import Optimizer


class ClippedBf16(MixedPrecision):
    """Lightning's bf16-mixed, which refuses to clip under a fused optimizer: fp16's rule, whose gradients are scaled.

    bf16 has no scaler, so gradients are what they are and the norm is the right one.
    """

    def clip_gradients(self, optimizer: Optimizer, *arguments: Any, **options: Any) -> None:
        """Clip as in full precision."""
        Precision.clip_gradients(self, optimizer, *arguments, **options)
