"""Attention over short sequences on a CPU: products and a softmax where torch's fused kernel is slower."""

from typing import Any

import torch
from torch import Tensor, nn

MAX_TOKENS = 128
"""Up to here the fused kernel's backward pass in bf16 is 3 to 13 times slower on a CPU (torch 2.15); not so at 384."""


def prefer_products(model: nn.Module) -> None:
    """Let a timm ViT compute attention by products while it trains on a CPU in half precision on short sequences.

    Chosen anew in each forward pass by the images' place, number format and size; fp32, other devices and longer
    sequences keep torch's fused kernel, compiled models too. Models whose attention cannot be told to are left alone.
    """
    layers = [module for module in model.modules() if isinstance(getattr(module, "fused_attn", None), bool)]
    embedding = getattr(model, "patch_embed", None)
    if layers and embedding is not None and all(layer.fused_attn for layer in layers):
        model.register_forward_pre_hook(_choose)


def _choose(model: Any, inputs: tuple[Any, ...]) -> None:
    """Set the kernel of every attention layer for this forward pass."""
    if torch.compiler.is_compiling():
        return
    images = inputs[0]
    fused = not (images.device.type == "cpu" and _is_half(images) and _num_tokens(model, images) <= MAX_TOKENS)
    for module in model.modules():
        if isinstance(getattr(module, "fused_attn", None), bool):
            module.fused_attn = fused


def _is_half(images: Tensor) -> bool:
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") in (torch.bfloat16, torch.float16)
    return images.dtype in (torch.bfloat16, torch.float16)


def _num_tokens(model: Any, images: Tensor) -> int:
    """Count the patches of one image [B, C, H, W]."""
    height, width = model.patch_embed.patch_size
    return (images.shape[-2] // height) * (images.shape[-1] // width)
