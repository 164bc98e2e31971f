"""MMLU by letter likelihood, 5-shot, against lm-eval's hf backend: a small OPT on the CPU, shapes of 7 B on a card.

All weights are random; tokenisation is within every time. Ours computes what a subject's prompts begin with once, and
logits of last tokens alone; lm-eval reads each question whole, once for its four letters, with logits of every token.
"""

import importlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from essential_sparsity.data.byte_pairs import BytePairs
from essential_sparsity.data.mmlu import LETTERS, asked, introduction
from essential_sparsity.data.multiple_choice import Mmlu, sound
from essential_sparsity.predictions import predict
from essential_sparsity.pruning import prunable_weights
from essential_sparsity.tasks.multiple_choice import MultipleChoice
from tests.bench import machine
from tests.bench.figure import Figure
from tests.bench.measure import seconds

SHOTS = 5
SUBJECTS = {
    True: ["abstract_algebra"],
    False: ["abstract_algebra", "astronomy", "machine_learning", "marketing"],
}
"""Of the small form, quick or not: 50 questions each."""


@dataclass
class Setting:
    """A model with its tokenizer, and the questions that it is asked."""

    model: Any
    preprocessing: Any
    root: str
    subjects: list[str] | None
    num_per_subject: int | None

    def data(self, cache: str) -> Mmlu:
        """Give the questions; tokenised anew in each cache."""
        return SomeMmlu(self.num_per_subject, root=self.root, subjects=self.subjects, num_shots=SHOTS, cache=cache)


class SomeMmlu(Mmlu):
    """The first questions of each subject."""

    def __init__(self, num_per_subject: int | None, **options: Any) -> None:
        super().__init__(**options)
        self.num_per_subject = num_per_subject

    def table(self, split: str) -> Any:
        """Read a split; of the questions the first of each chosen subject."""
        whole = super().table(split)
        if split == "dev" or self.num_per_subject is None:
            return whole
        names = np.array(whole["subject"].to_pylist())
        places = [np.flatnonzero(names == subject)[: self.num_per_subject] for subject in self.subjects or ()]
        return whole.take(np.sort(np.concatenate(places)))


def run(quick: bool = False) -> Iterator[Figure]:
    """Measure on the CPU, and on a card where one is."""
    root = os.environ.get("ES_DATA")
    if not root or not Path(root, "mmlu").is_dir():
        yield Figure("MMLU, 5-shot", skipped="ES_DATA names no folder with mmlu: skipped")
        return
    yield from _figures(small(root, quick), "small OPT, CPU", quick)
    if torch.cuda.is_available():
        yield from _figures(large(root, quick), "7 B shapes, bf16, card", quick)
    else:
        yield Figure("MMLU at 7 B shapes on a card", skipped="no CUDA card: skipped")


def small(root: str, quick: bool) -> Setting:
    """Give an OPT of 4 layers of 512 in fp32, a vocabulary of 8,192, and 200 questions (quick: tiny, 12)."""
    from essential_sparsity.backbones.new_opt import NewOpt

    vocabulary = BytePairs(root=root, size=8192)
    longest = {"max_position_embeddings": 1024}  # lm-eval looks for its batch size at the longest that there may be
    backbone = NewOpt(size="tiny" if quick else "small", vocabulary=vocabulary, dropout=0.0, config=longest)
    model = backbone.build(num_labels=0, seed=0, head="causal_lm").eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2)  # letters differ clearly
    return Setting(model, backbone.preprocessing(), root, SUBJECTS[quick], 12 if quick else 50)


def large(root: str, quick: bool) -> Setting:
    """Give a Llama of Vicuna-7B's shape with random bf16 weights on the card, and all questions (quick: tiny, 12)."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from essential_sparsity.backbones.language import TextPreprocessing

    layers, width, inner, heads = (2, 128, 256, 2) if quick else (32, 4096, 11008, 32)
    shape: dict[str, Any] = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": inner}
    config = LlamaConfig(vocab_size=32_000, num_attention_heads=heads, max_position_embeddings=4096, **shape)
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    read = TextPreprocessing(BytePairs(root=root, size=32_000).tokenizer(), 4096)
    return Setting(model, read, root, SUBJECTS[True] if quick else None, 12 if quick else None)


def _figures(setting: Setting, form: str, quick: bool) -> Iterator[Figure]:
    found: dict[str, Any] = {}
    ours(setting, {}, warm=True)
    taken = seconds(lambda: ours(setting, found))
    num, columns = len(found["row"]), found
    limit = {"limit": found["flops"] / rate(setting, quick), "limit_is": "for its matrix products"}
    whole: dict[str, Any] = {}
    alone = seconds(lambda: ours(setting, whole, share_prefix=False))
    yield Figure(f"{form}: {num} questions; ours, each prompt whole", taken, alone, **limit)
    if importlib.util.find_spec("lm_eval") is None:
        yield Figure(f"{form}: {num} questions; lm-eval", skipped="lm-eval (extra llm) is not installed: skipped")
        return
    for batch_size, goal in (("auto", "≥ 4"), (16, "")):
        theirs: list[float] = []
        peer = seconds(lambda b=batch_size, t=theirs: t.extend(lm_eval(setting, b)))
        yield Figure(f"{form}: {num} questions; lm-eval, batch size {batch_size}", taken, peer, goal=goal, **limit)
        yield from _agreement(f"{form}, batch size {batch_size}", setting, columns, np.array(theirs))


def _agreement(what: str, setting: Setting, columns: dict[str, Any], theirs: np.ndarray) -> Iterator[Figure]:
    """Compare with lm-eval's log-likelihoods; in bf16, where sums are rounded in another order, without a bound."""
    likelihoods = theirs.reshape(-1, len(LETTERS))
    own = np.stack([columns[f"log_likelihood_{letter.lower()}"] for letter in LETTERS], axis=1)
    exact = next(setting.model.parameters()).dtype == torch.float32
    farthest, same = float(np.abs(own - likelihoods).max()), float((own.argmax(1) == likelihoods.argmax(1)).mean())
    goals = ("≤ 0.0001", "= 1") if exact else ("", "")
    name = f"{what}: largest difference of a log-likelihood"
    yield Figure(name, farthest, unit="", goal=goals[0], check=exact)
    yield Figure(f"{what}: share of questions with the same letter", same, unit="", goal=goals[1], check=exact)


def rate(setting: Setting, quick: bool) -> float:
    """Give the operations a second that the machine reaches in the model's number format."""
    if next(setting.model.parameters()).is_cuda:
        left = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)

        def product() -> None:
            torch.mm(left, left)
            torch.cuda.synchronize()

        product()
        return 2 * 8192**3 / min(seconds(product) for _ in range(5))
    return machine.rates(quick).fp32


def ours(setting: Setting, found: dict[str, Any], *, share_prefix: bool = True, warm: bool = False) -> None:
    """Tokenise and answer all questions (`warm`: a subject alone)."""
    with tempfile.TemporaryDirectory() as cache:
        data = setting.data(cache)
        data.prepare(setting.preprocessing)
        loaders = data.evaluation_dataloaders()
        if warm:
            loaders = {name: [next(iter(loader))] for name, loader in loaders.items()}
        found |= predict(MultipleChoice(setting.model, share_prefix=share_prefix), loaders)["test"]
        body = sum(weight.numel() for weight in prunable_weights(setting.model).values())
        tokens = sum(len(batch["prefix"]) + len(batch["tails"]) for loader in loaders.values() for batch in loader)
        found["flops"] = 2 * body * tokens


def lm_eval(setting: Setting, batch_size: int | str) -> list[float]:
    """Give lm-eval's log-likelihoods of the four letters of each question, in the order of the table."""
    instance = importlib.import_module("lm_eval.api.instance").Instance
    wrapper = importlib.import_module("lm_eval.models.huggingface").HFLM
    with tempfile.TemporaryDirectory() as cache:
        data = setting.data(cache)
        rows = [row for _, row in sound(data.table("test"), "test questions")[0]]
        dev = [row for _, row in sound(data.table("dev"), "dev examples")[0]]
    shots: dict[str, list[Any]] = {}
    for row in dev:
        shots.setdefault(row["subject"], []).append((row["question"], row["choices"], row["answer"]))
    requests = []
    for row in rows:
        prompt = introduction(row["subject"], shots[row["subject"]][:SHOTS]) + asked(row["question"], row["choices"])
        requests += [instance("loglikelihood", row, (prompt, f" {letter}"), at) for at, letter in enumerate(LETTERS)]
    wrapped = wrapper(
        pretrained=setting.model, tokenizer=setting.preprocessing.tokenizer, batch_size=batch_size,
        max_length=setting.preprocessing.max_length,
    )  # fmt: skip
    with torch.inference_mode():
        return [likelihood for likelihood, _ in wrapped.loglikelihood(requests, disable_tqdm=True)]
