"""Letters scored the slow and obvious way: one prompt at a time, through the whole model."""

from typing import Any

import torch

from essential_sparsity.data.prompts import Questions


@torch.no_grad()
def letter_likelihoods(model: Any, questions: Questions) -> torch.Tensor:
    """Give the log-likelihood of each letter after each prompt: [questions, 4]."""
    found = []
    for number in range(len(questions.labels)):
        ids = torch.from_numpy(questions.prompt(number).astype("int64"))[None]
        last = model(input_ids=ids).logits[0, -1].float()
        found.append(last.log_softmax(-1)[torch.from_numpy(questions.letters)])
    return torch.stack(found)
