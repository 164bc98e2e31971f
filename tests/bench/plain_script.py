"""The peer of zero_shot.py: one point as a script without a library of sparsity does it. Imports only what it needs."""

from pathlib import Path


def zero_shot_point(model: str, data: str, sparsity: str) -> float:
    """Do one point as a script without a library of sparsity would: load, prune globally, evaluate; its accuracy."""
    import pandas as pd
    import torch
    from torch.nn.utils import prune
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    network = AutoModelForSequenceClassification.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    linears = [m for m in network.base_model.encoder.modules() if isinstance(m, torch.nn.Linear)]
    prune.global_unstructured([(m, "weight") for m in linears], prune.L1Unstructured, amount=float(sparsity))
    rows = pd.read_parquet(Path(data, "glue", "sst2", "validation.parquet"))
    texts, labels, right = rows["sentence"].tolist(), torch.tensor(rows["label"].tolist()), 0
    with torch.inference_mode():
        for start in range(0, len(labels), 32):
            part = texts[start : start + 32]
            batch = tokenizer(part, padding=True, truncation=True, max_length=256, return_tensors="pt")
            logits = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            right += int((logits.argmax(-1) == labels[start : start + 32]).sum())
    return right / len(labels)
