"""What a batch is over all ranks: its mean loss, its rows and tokens. A step's outputs tell, where there are several.

A rank's part of a small batch may be a borrowed row, marked by row −1, which counts for nothing (data/batches.py).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

MEAN_LOSS, NUM_ROWS, NUM_TOKENS = "whole/mean_loss", "whole/num_rows", "whole/num_tokens"
"""What devices.py adds to a step's outputs on each of several ranks."""


def told(loss: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a step's outputs on one of several ranks: a `loss` whose gradients' mean over ranks is the whole batch's.

    `loss` is the mean over this rank's labels (of rows, windows or tokens; rows, where a batch has no labels), of which
    ranks may have different numbers. Two small all-reduces, and no waiting for the device.
    """
    labels, is_own = batch.get("labels", batch["row"]), batch["row"][:1] >= 0
    counts = [len(labels), len(batch["row"]), tokens_in(batch)]
    own = torch.stack([is_own.sum() * count for count in counts]).to(loss.device, torch.float64)
    whole = own.clone()
    torch.distributed.all_reduce(whole)
    world = torch.distributed.get_world_size()
    loss = loss * (own[0] * world / whole[0]).to(loss.dtype)
    mean = loss.detach().double() / world
    torch.distributed.all_reduce(mean)
    return {"loss": loss, MEAN_LOSS: mean.float(), NUM_ROWS: whole[1].long(), NUM_TOKENS: whole[2].long()}


def tokens_in(batch: Any) -> Tensor | int:
    """Count a batch's tokens without padding, without waiting for the device; 0 where it holds no text."""
    if not isinstance(batch, Mapping):
        return 0
    if isinstance(mask := batch.get("attention_mask"), Tensor):
        return mask.sum()
    return ids.numel() if isinstance(ids := batch.get("input_ids"), Tensor) else 0


def mean_loss(outputs: Any, accumulated: int) -> Tensor | None:
    """Give the mean loss of a batch from its step's outputs; None where they hold none."""
    if isinstance(outputs, Mapping) and MEAN_LOSS in outputs:
        return outputs[MEAN_LOSS]
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return loss.detach().float() * accumulated if isinstance(loss, Tensor) else None


def num_rows(outputs: Any, batch: Mapping[str, Tensor]) -> Tensor | int:
    """Count a batch's rows."""
    whole = outputs.get(NUM_ROWS) if isinstance(outputs, Mapping) else None
    return len(batch["row"]) if whole is None else whole


def num_tokens(outputs: Any, batch: Any) -> Tensor | int:
    """Count a batch's tokens."""
    whole = outputs.get(NUM_TOKENS) if isinstance(outputs, Mapping) else None
    return tokens_in(batch) if whole is None else whole
