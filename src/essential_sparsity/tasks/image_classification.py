"""Classification of images by a timm model."""

from torch import Tensor

from essential_sparsity.tasks.classification import Batch, Classification


class ImageClassification(Classification):
    """Classify images [rows, channels, height, width], already normalised to what the backbone was trained with."""

    def scores(self, batch: Batch) -> Tensor:
        """Give the model's logits [rows, num_labels]."""
        return self.model(batch["images"])
