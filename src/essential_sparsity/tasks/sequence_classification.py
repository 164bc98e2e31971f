"""Classification (or regression) of whole texts by a transformers model with a classification head."""

from torch import Tensor

from essential_sparsity.tasks.classification import Batch, Classification


class SequenceClassification(Classification):
    """Classify texts from input_ids and attention_mask; no token_type_ids, as in the paper."""

    def scores(self, batch: Batch) -> Tensor:
        """Give the model's logits [rows, num_labels]."""
        return self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
