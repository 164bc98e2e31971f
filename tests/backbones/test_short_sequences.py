"""Attention by products on a CPU in half precision: the same numbers as the fused kernel, chosen where it is faster."""

import copy

import torch

from essential_sparsity.backbones.short_sequences import MAX_TOKENS
from essential_sparsity.backbones.vision import VisionBackbone

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4}


def vit(size=16, **arguments):
    backbone = VisionBackbone(
        "vit_tiny_patch16_224", pretrained=False, image_size=size, num_channels=1, arguments=SMALL | arguments
    )
    return backbone.build(num_labels=3, seed=0)


def is_fused(model):
    (fused,) = {block.attn.fused_attn for block in model.blocks}
    return fused


def test_products_are_taken_in_half_precision_alone():
    model, images = vit(), torch.zeros(1, 1, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        model(images)
    assert not is_fused(model)
    model(images)
    assert is_fused(model)


def test_long_sequences_keep_the_fused_kernel():
    model = vit(size=48)
    assert MAX_TOKENS < (48 // 4) ** 2
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.zeros(1, 1, 48, 48))
    assert is_fused(model)


def test_a_model_in_half_precision_takes_them_without_autocast():
    model = vit().bfloat16()
    model(torch.zeros(1, 1, 16, 16, dtype=torch.bfloat16))
    assert not is_fused(model)


def test_a_copy_chooses_by_itself():
    model = vit()
    twin = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        twin(torch.zeros(1, 1, 16, 16))
    assert not is_fused(twin) and is_fused(model)


def test_gradients_are_as_near_to_fp32_as_the_fused_kernel_s():
    images = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))

    def gradients(*, half, hooks=True):
        model = vit()
        if not hooks:
            model._forward_pre_hooks.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model(images).float().pow(2).mean()
        loss.backward()
        return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])

    exact = gradients(half=False)
    ours, fused = ((gradients(half=True, hooks=hooks) - exact).norm() / exact.norm() for hooks in (True, False))
    assert ours < 1.2 * fused < 0.05


def test_fp32_keeps_its_bits():
    images = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    model = vit()
    ours = model(images)
    model._forward_pre_hooks.clear()
    assert torch.equal(ours, model(images))
