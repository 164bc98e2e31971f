"""Extractive question answering: each token scores as start and as end of the answer, the best span is the answer.

Legend: W windows of a batch, L tokens of the longest, Q questions; the windows of a question are in one batch.
"""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as lightning
import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.optim import Optimizer

from essential_sparsity.tasks.optimization import Schedule, configured, required

Batch = dict[str, Tensor]


def best_spans(starts: Tensor, ends: Tensor, context: Tensor, max_length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find each window's span of at most `max_length` context tokens whose start and end scores sum highest.

    `starts`, `ends` [W, L] are scores, `context` [W, 2] the first token of the context and the one behind its last.
    Exact, over all spans (no list of the n best). Gives the sums, first tokens and last tokens [W]; the sum is −inf
    where a window has no context.
    """
    positions = torch.arange(starts.shape[1], device=starts.device)
    outside = (positions < context[:, :1]) | (positions >= context[:, 1:])
    starts, ends = (scores.masked_fill(outside, float("-inf")) for scores in (starts, ends))
    reachable = functional.pad(ends, (0, max_length - 1), value=float("-inf")).unfold(1, max_length, 1)
    best_ends, further = reachable.max(-1)  # [W, L, max_length] → [W, L]; a view, not a copy
    sums, first = (starts + best_ends).max(-1)
    return sums, first, first + further.gather(1, first[:, None]).squeeze(1)


def best_windows(sums: Tensor, question: Tensor, num_questions: int) -> Tensor:
    """Give the window of the highest sum for each question [Q], the earlier one of equals; each has at least one."""
    order = sums.argsort(descending=True, stable=True)
    order = order[question[order].argsort(stable=True)]
    counts = question.bincount(minlength=num_questions)
    return order[counts.cumsum(0) - counts]


class QuestionAnswering(lightning.LightningModule):
    """Find answers in contexts: a batch holds windows, and their `labels` [W, 2], start and end of the answer.

    A window without the answer has both at token 0, [CLS], as in BERT's recipe (Devlin et al. 2019); scores of padding
    take no part in the loss. `max_answer_length` in tokens is that recipe's 30. No token_type_ids, as in the paper.
    """

    head = "question_answering"
    """What the backbone is to be built with."""

    def __init__(
        self,
        model: nn.Module,
        *,
        num_labels: int = 2,
        optimizer: Callable[..., Optimizer] | None = None,
        schedule: Schedule | None = None,
        max_answer_length: int = 30,
    ) -> None:
        super().__init__()
        if num_labels != 2:
            raise ValueError(
                f"task=question_answering asks data with questions, these have {num_labels} labels: give data=squad"
            )
        if isinstance(max_answer_length, bool) or not isinstance(max_answer_length, int) or max_answer_length < 1:
            raise ValueError(f"task.max_answer_length={max_answer_length!r} is no whole number of at least 1: give one")
        self.model, self.max_answer_length = model, max_answer_length
        self._make_optimizer, self._make_schedule = optimizer, schedule

    def scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Give the scores of all tokens as start and as end of the answer, each [W, L] in fp32; padding has −inf."""
        output = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        padding = batch["attention_mask"] == 0
        starts, ends = (
            scores.float().masked_fill(padding, float("-inf")) for scores in (output.start_logits, output.end_logits)
        )
        return starts, ends

    def window_losses(self, scores: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        """Give each window's loss [W]: the mean of the cross-entropies of start and end."""
        if labels.ndim != 2:
            raise ValueError("task=question_answering asks data with questions: give data=squad")
        losses = [
            functional.cross_entropy(part, label, reduction="none")
            for part, label in zip(scores, labels.unbind(1), strict=True)
        ]
        return torch.stack(losses).mean(0)

    def loss(self, batch: Batch) -> Tensor:
        """Give the mean loss of the batch's windows."""
        return self.window_losses(self.scores(batch), batch["labels"]).mean()

    def training_step(self, batch: Batch, batch_idx: int = 0) -> Tensor:
        """Give the batch's loss, and log it as train/loss (no synchronisation with the device)."""
        loss = self.loss(batch)
        self.log("train/loss", loss.detach(), batch_size=len(batch["labels"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int = 0, dataloader_idx: int = 0) -> None:
        """Log the loss of a validation batch; the reported metrics come from `predict_step`."""
        self.log("validation/loss", self.loss(batch), batch_size=len(batch["labels"]))

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> Batch:
        """Give the columns row, window, start, end (tokens of the window), loss (mean of its windows) of the questions.

        The data turn tokens into words and score them.
        """
        scores, question, num = self.scores(batch), batch["question"], len(batch["row"])
        losses = self.window_losses(scores, batch["labels"])
        sums, first, last = best_spans(*scores, batch["context"], self.max_answer_length)
        chosen = best_windows(sums, question, num)
        totals = losses.new_zeros(num).index_add_(0, question, losses)
        return {
            "row": batch["row"],
            "window": batch["window"][chosen],
            "start": first[chosen],
            "end": last[chosen],
            "loss": totals / question.bincount(minlength=num),
        }

    def configure_optimizers(self) -> Any:
        """Make the optimizer over the groups with and without decay, and its schedule by step."""
        make = required(self._make_optimizer)
        return configured(self.model, make, self._make_schedule, self.trainer.estimated_stepping_batches)
