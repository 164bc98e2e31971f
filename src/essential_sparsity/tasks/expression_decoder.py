"""A decoder of prefix expressions: a gated recurrent cell that knows its place in the tree, attends and copies.

Legend: R rows, L tokens of a text, H hidden size of the encoder, D width, V symbols (operators and constants),
S number slots, A = V + S choices, T tokens of an expression.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from essential_sparsity.data.expressions import OPERATORS

NUM_PLACES = 1 + 2 * len(OPERATORS)
"""Where a token stands: the root, or the left or right operand of an operator."""


class Reading(NamedTuple):
    """An encoded batch as the decoder reads it."""

    memory: Tensor  # [R, L, D]
    hidden: Tensor  # [R, L], True where a text has no token
    choices: Tensor  # [R, A, D], what may come next: symbols, then the row's slots
    absent: Tensor  # [R, A], True for a slot that the row does not have


class Tree(NamedTuple):
    """The places of a prefix expression that wait for a token, as a stack: the next token goes to the top."""

    stack: Tensor  # [R, T + 2], place ids
    depth: Tensor  # [R], places that wait; 0: the expression is whole

    @classmethod
    def empty(cls, num_rows: int, num_tokens: int, device: torch.device) -> "Tree":
        """Give trees that wait for their root."""
        stack = torch.zeros(num_rows, num_tokens + 2, dtype=torch.long, device=device)
        return cls(stack, torch.ones(num_rows, dtype=torch.long, device=device))

    @property
    def place(self) -> Tensor:
        """Place of the next token [R]; that of a whole expression has no meaning."""
        return self.stack.gather(1, (self.depth - 1).clamp_min(0)[:, None]).squeeze(1)

    def after(self, choice: Tensor) -> "Tree":
        """Put a token [R] at the top: an operator opens its right operand and, above that, its left one."""
        is_open = self.depth > 0
        is_operator = is_open & (choice >= 0) & (choice < len(OPERATORS))
        top = (self.depth - 1).clamp_min(0)[:, None]
        right, left = 2 + 2 * choice[:, None], 1 + 2 * choice[:, None]
        below = torch.where(is_operator[:, None], right, self.stack.gather(1, top))
        stack = self.stack.scatter(1, top, below)
        above = torch.where(is_operator[:, None], left, stack.gather(1, top + 1))
        stack = stack.scatter(1, top + 1, above)
        return Tree(stack, self.depth + is_operator.long() - (is_open & ~is_operator).long())


class ExpressionDecoder(nn.Module):
    """Choose the tokens of a prefix expression one by one: an operator, a constant, or a number of the text.

    Step t reads the token before, what was attended to before, and the place that t fills in the expression's tree; a
    slot is chosen by its token's encoding (a pointer), so that any number of slots will do. Autoregressive; the goal
    vectors of GTS (Xie and Sun 2019), which SMC-Bench decodes with, are replaced by the embedding of the place.
    """

    def __init__(self, hidden_size: int, num_symbols: int, *, width: int = 384, dropout: float = 0.3) -> None:
        super().__init__()
        self.read = nn.Linear(hidden_size, width)
        self.point = nn.Linear(hidden_size, width)
        self.symbols = nn.Embedding(num_symbols, width)
        self.places = nn.Embedding(NUM_PLACES, width)
        self.start = nn.Linear(hidden_size, width)
        self.gates = nn.Linear(4 * width, 2 * width)
        self.candidate = nn.Linear(4 * width, width)
        self.combine = nn.Linear(3 * width, width)
        self.dropout = nn.Dropout(dropout)
        self.scale = width**-0.5

    def reading(self, encoded: Tensor, attention_mask: Tensor, slots: Tensor) -> Reading:
        """Prepare a batch: the encoder's output [R, L, H], its mask [R, L], tokens of the slots [R, S] (-1: none)."""
        num_rows, hidden_size = len(slots), encoded.shape[-1]
        chosen = encoded.gather(1, slots.clamp_min(0)[..., None].expand(-1, -1, hidden_size))  # [R, S, H]
        symbols = self.symbols.weight.expand(num_rows, -1, -1)
        pointed = self.point(self.dropout(chosen))
        absent = torch.cat([slots.new_zeros(num_rows, symbols.shape[1]), slots < 0], dim=1).bool()
        choices = torch.cat([symbols.to(pointed.dtype), pointed], dim=1)
        return Reading(self.read(self.dropout(encoded)), attention_mask == 0, choices, absent)

    def first_state(self, encoded: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give the state [R, D] of the mean token, and as token and context before the first [R, D] nothing."""
        weight = attention_mask[..., None].to(encoded.dtype)
        mean = (encoded * weight).sum(1) / weight.sum(1)
        state = torch.tanh(self.start(mean))
        return state, torch.zeros_like(state), torch.zeros_like(state)

    def step(
        self, state: Tensor, token: Tensor, context: Tensor, place: Tensor, reading: Reading
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Go one token on: the new state [R, D], its context [R, D] and the logits of all choices [R, A] in fp32."""
        given = self.dropout(torch.cat([token, context, self.places(place).to(token.dtype)], dim=-1))
        renew, forget = torch.sigmoid(self.gates(torch.cat([given, state], dim=-1))).chunk(2, dim=-1)
        candidate = torch.tanh(self.candidate(torch.cat([given, forget * state], dim=-1)))
        state = state + renew * (candidate - state)
        attention = torch.einsum("rd,rld->rl", state, reading.memory).float() * self.scale
        weight = attention.masked_fill(reading.hidden, float("-inf")).softmax(-1).to(reading.memory.dtype)
        context = torch.einsum("rl,rld->rd", weight, reading.memory)
        output = torch.tanh(self.combine(self.dropout(torch.cat([state, context, given[..., -state.shape[-1] :]], -1))))
        logits = torch.einsum("rd,rad->ra", output, reading.choices).float() * self.scale
        return state, context, logits.masked_fill(reading.absent, float("-inf"))

    def teach(self, encoded: Tensor, attention_mask: Tensor, slots: Tensor, expression: Tensor) -> Tensor:
        """Give the logits [R, T, A] of each token of given expressions [R, T] after those before it."""
        reading = self.reading(encoded, attention_mask, slots)
        state, token, context = self.first_state(encoded, attention_mask)
        tree = Tree.empty(expression.shape[0], expression.shape[1], expression.device)
        steps = []
        for choice in expression.unbind(1):
            state, context, logits = self.step(state, token, context, tree.place, reading)
            steps.append(logits)
            tree, token = tree.after(choice), _vectors(reading.choices, choice).to(token.dtype)
        return torch.stack(steps, dim=1)

    def write(self, encoded: Tensor, attention_mask: Tensor, slots: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Choose greedily: expressions [R, at most num_tokens], -1 behind their end, and which are whole [R]."""
        reading = self.reading(encoded, attention_mask, slots)
        state, token, context = self.first_state(encoded, attention_mask)
        tree = Tree.empty(len(slots), num_tokens, slots.device)
        written = []
        for _ in range(num_tokens):
            state, context, logits = self.step(state, token, context, tree.place, reading)
            choice = torch.where(tree.depth > 0, logits.argmax(-1), -1)
            written.append(choice)
            tree, token = tree.after(choice), _vectors(reading.choices, choice).to(token.dtype)
            if not bool((tree.depth > 0).any()):
                break
        return torch.stack(written, dim=1), tree.depth == 0


def _vectors(choices: Tensor, choice: Tensor) -> Tensor:
    """Give the vectors [R, D] of chosen tokens [R]; nothing for a negative one."""
    index = choice.clamp_min(0)[:, None, None].expand(-1, 1, choices.shape[-1])
    return choices.gather(1, index).squeeze(1) * (choice >= 0)[:, None].to(choices.dtype)


def expression_losses(logits: Tensor, expression: Tensor) -> Tensor:
    """Give each row's mean loss [R] over the tokens of its expression that a vocabulary has; [R, T, A] and [R, T]."""
    targets = torch.where(expression < 0, -100, expression)
    losses = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=-100)
    return losses.sum(1) / (targets >= 0).sum(1).clamp_min(1)
