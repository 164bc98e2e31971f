"""Pre-training BERT by masked tokens against transformers' own Trainer, on the same packed blocks of random words.

BERT-mini, 32 blocks of 128 tokens, on the CPU; BERT-base, 256 blocks of 128, on a CUDA card where there is one. Ours is
`training.fit`: head and loss at the masked positions alone, fused AdamW, clipping, linear decay. The peer is Trainer
with the default model and collator; a second one has bf16, the fused optimizer and compilation switched on. Each runs
in a fresh process, in turn, and is timed from a step after warming up to the last one.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pytorch_lightning import Callback

from essential_sparsity.backbones.new_bert import NewBert
from essential_sparsity.backbones.tiny import SPECIAL, wordpiece_tokenizer
from essential_sparsity.data.blocks import framed
from essential_sparsity.data.corpus import Documents
from essential_sparsity.data.masked_text import MaskedText
from essential_sparsity.pruning import prunable_weights
from essential_sparsity.tasks.masked_lm import MaskedLanguageModel
from essential_sparsity.tasks.optimization import linear
from essential_sparsity.training import fit
from tests.bench.figure import Figure
from tests.bench.measure import fresh, seconds

VOCABULARY_SIZE = 30_522
TOKENS = 128


@dataclass(frozen=True)
class Setting:
    """What is trained, and how long: `steps` are timed after `warm` ones."""

    size: str
    batch: int
    steps: int
    warm: int
    compile: bool  # ours

    @property
    def tokens(self) -> int:
        """Tokens of the timed steps."""
        return self.steps * self.batch * TOKENS


CPU, GPU = Setting("mini", 32, 12, 3, False), Setting("base", 256, 60, 20, True)
QUICK = Setting("tiny", 4, 2, 1, False)


@dataclass(frozen=True)
class RandomWords:
    """A corpus of random words, each a piece of the vocabulary: no download, and every token costs the same."""

    num_blocks: int

    def check(self) -> None:
        """Nothing is read."""

    def splits(self) -> list[str]:
        """Name the only split."""
        return ["train"]

    def inputs(self) -> dict[str, str]:
        """Name what decides the words."""
        return {"random words": self.digest("train")}

    def digest(self, split: str) -> str:
        """Name what decides the words."""
        return f"random words, {self.num_blocks} blocks"

    def documents(self, split: str) -> Documents:
        """Draw 20 documents."""
        draws = np.random.RandomState(0).randint(VOCABULARY_SIZE - len(SPECIAL), size=(20, 7 * self.num_blocks))
        texts = [" ".join(f"w{word}" for word in row) for row in draws]
        return Documents(pa.chunked_array([pa.array(texts, pa.large_string())]), np.arange(21))


@dataclass(frozen=True)
class Words:
    """The vocabulary of random words, as large as BERT's."""

    def check(self) -> None:
        """Nothing is read."""

    def inputs(self) -> dict[str, str]:
        """Nothing is read."""
        return {}

    def tokenizer(self) -> Any:
        """Give the tokenizer."""
        return wordpiece_tokenizer([*SPECIAL, *(f"w{word}" for word in range(VOCABULARY_SIZE - len(SPECIAL)))])


def run(quick: bool = False) -> Iterator[Figure]:
    """Check the loss, then time ours and both peers in turn."""
    yield Figure("difference from the loss of BertForMaskedLM", loss_difference(), unit="", goal="≤ 1e-5", check=True)
    if find_spec("accelerate") is None:
        yield Figure(
            "tokens per second of a pre-training", skipped="accelerate, which Trainer needs, is not here: skipped"
        )
        return
    on_card = torch.cuda.is_available() and not quick
    setting = QUICK if quick else GPU if on_card else CPU
    rounds = 1 if quick else 3
    found: dict[str, list[float]] = {"ours": [], "ours fp32": [], "default": [], "tuned": []}
    with tempfile.TemporaryDirectory() as cache:
        options = {"environment": {"ES_CACHE": cache}, "setting": asdict(setting)}
        for _ in range(rounds):
            found["ours"].append(fresh(ours, precision="bf16-mixed", **options)[0])
            found["default"].append(fresh(peer, tuned=False, **options)[0])
            found["tuned"].append(fresh(peer, tuned=True, **options)[0])
            found["ours fp32"].append(fresh(ours, precision="32-true", **options)[0])
    rates = {name: setting.tokens / median(values) for name, values in found.items()}
    yield from _figures(setting, rates, "on a card" if on_card else "on the CPU", "≥ 2" if on_card else "≥ 2.5")


def _figures(setting: Setting, rates: dict[str, float], where: str, goal: str) -> Iterator[Figure]:
    what = f"BERT-{setting.size}, {setting.batch} × {TOKENS}, {where}"
    work, rate = operations_per_token(setting.size), matrix_rate(torch.bfloat16)
    limit = {"unit": "tokens/s", "limit": rate / work, "limit_is": "by bf16 matrix products"}
    for name, peer_name, label, wanted in [
        ("ours", "default", "bf16; Trainer's defaults", goal),
        ("ours", "tuned", "bf16; Trainer, bf16, fused, compiled", "≥ 1.3"),
        ("ours fp32", "default", "fp32; Trainer's defaults", ""),
    ]:
        ratio = rates[name] / rates[peer_name]
        yield Figure(
            f"{what}: {label}", rates[name], rates[peer_name], paired_ratio=ratio, goal=wanted,
            note="medians of fresh processes in turn", **limit,
        )  # fmt: skip
    yield Figure(f"{what}: share of the measured bf16 matrix rate", rates["ours"] * work / rate, unit="share")


def operations_per_token(size: str) -> float:
    """Give the multiplications and additions of a token in training: blocks, attention, and the head on 15 % of all."""
    backbone = NewBert(size=size, vocabulary=Words())
    config = backbone.model_config()
    model = backbone.build(num_labels=0, seed=0, head="masked_lm")
    blocks = sum(weight.numel() for weight in prunable_weights(model).values())
    attention = 2 * config.num_hidden_layers * config.hidden_size * TOKENS
    head = 0.15 * config.hidden_size * (config.hidden_size + config.vocab_size)
    return 6 * (blocks + attention + head)


def matrix_rate(dtype: torch.dtype) -> float:
    """Measure products of large square matrices where training runs: operations per second, the best of ten."""
    device, edge = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 2048)
    left, right = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
    return max(2 * edge**3 / seconds(lambda: (left @ right)[0, 0].item()) for _ in range(10))


def loss_difference() -> float:
    """Give the difference between our loss and that of transformers' model on one batch, same weights, fp32."""
    backbone = NewBert(size="tiny", vocabulary=Words(), dropout=0.0)
    with tempfile.TemporaryDirectory() as cache:
        data = MaskedText(RandomWords(40), batch_size=8, cache=cache)
        data.prepare(backbone.preprocessing())
        batch = next(iter(data.train_dataloader()))
    model: Any = backbone.build(num_labels=0, seed=0, head="masked_lm")
    labels = torch.full_like(batch["input_ids"], -100).flatten()
    labels = labels.index_copy(0, batch["positions"], batch["labels"]).reshape(batch["input_ids"].shape)
    with torch.no_grad():
        theirs = model(input_ids=batch["input_ids"], labels=labels).loss
        return abs((MaskedLanguageModel(model).token_losses(batch).mean() - theirs).item())


# --- in a fresh process -----------------------------------------------------------------------------------------------


def now() -> float:
    """Give the time, once the card has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _data(setting: Setting) -> MaskedText:
    return MaskedText(RandomWords(40 * setting.batch), batch_size=setting.batch, block_length=TOKENS)


class Stopwatch(Callback):
    """Time the steps after the first `warm` ones."""

    def __init__(self, warm: int) -> None:
        self.warm, self.started, self.seconds = warm, 0.0, 0.0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start."""
        if trainer.global_step == self.warm:
            self.started = now()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop."""
        self.seconds = now() - self.started


def ours(setting: dict[str, Any], precision: str) -> float:
    """Pre-train by `fit`: seconds of the timed steps."""
    asked, watch = Setting(**setting), Stopwatch(setting["warm"])
    optimizer = partial(torch.optim.AdamW, lr=1e-4, weight_decay=0.01, fused=True)
    trainer = {"max_epochs": -1, "max_steps": asked.warm + asked.steps, "gradient_clip_val": 1.0}
    with tempfile.TemporaryDirectory() as folder:
        fit(
            NewBert(size=asked.size, vocabulary=Words()), _data(asked),
            partial(MaskedLanguageModel, optimizer=optimizer, schedule=linear, compile=asked.compile),
            run=f"{folder}/run", trainer={**trainer, "precision": precision}, callbacks=[watch],
        )  # fmt: skip
    return watch.seconds


def peer(setting: dict[str, Any], tuned: bool) -> float:
    """Pre-train by transformers' Trainer on the same blocks: seconds of the timed steps."""
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

    asked = Setting(**setting)
    backbone = NewBert(size=asked.size, vocabulary=Words())
    preprocessing, data = backbone.preprocessing(), _data(asked)
    data.prepare(preprocessing)
    train = data.training_rows()
    texts = train.examples.blocks.read(train.rows)  # type: ignore[attr-defined]
    tokenizer: Any = preprocessing.tokenizer
    rows = framed(texts, first=tokenizer.cls_token_id, last=tokenizer.sep_token_id).tolist()
    times: list[float] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == asked.warm:
                times.append(now())

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            times.append(now())

    switches = {"bf16": True, "optim": "adamw_torch_fused", "torch_compile": True} if tuned else {}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=asked.batch, max_steps=asked.warm + asked.steps, report_to="none",
            learning_rate=1e-4, weight_decay=0.01, save_strategy="no", logging_strategy="no", disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(), **switches,
        )  # fmt: skip
        Trainer(
            backbone.build(num_labels=0, seed=0, head="masked_lm"),  # type: ignore[arg-type]
            arguments,
            DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
            [{"input_ids": row} for row in rows],  # type: ignore[arg-type]
            callbacks=[Watch()],
        ).train()
    return times[1] - times[0]
