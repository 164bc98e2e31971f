"""Handwritten digits that come with scikit-learn: 1,797 real images of 8 × 8, no download."""

from functools import lru_cache
from typing import Any

import numpy as np

from essential_sparsity.data.batches import random_permutation
from essential_sparsity.data.decoded_images import DecodedImages
from essential_sparsity.data.images import ImageData
from essential_sparsity.inputs import digest_of, row_hashes

NUM_EVALUATED = 450
"""A fixed quarter is evaluated on; the other 1,347 images are the training rows, in two parts."""


class Digits(ImageData):
    """Ten classes of 8 × 8 grey images (UCI, Alpaydin and Kaynak 1998, as in scikit-learn); evaluation split "test"."""

    num_labels = 10

    def check(self) -> None:
        """Nothing can be missing: the images are part of scikit-learn."""

    def prepare(self, preprocessing: Any) -> None:
        """Split the images in training rows and test rows by one fixed permutation."""
        if not hasattr(preprocessing, "mean"):
            raise ValueError("these data are images, but the backbone reads text: choose a vision one, e.g. vit_tiny")
        pixels, labels = _digits()
        order = random_permutation(len(labels), self.PART_SEED)
        test, train = np.sort(order[:NUM_EVALUATED]), np.sort(order[NUM_EVALUATED:])
        content = row_hashes(image.tobytes() for image in pixels)
        parts = [DecodedImages(pixels[rows], content[rows], labels[rows], preprocessing) for rows in (train, test)]
        self.select_images(parts[0], {"test": parts[1]})

    def inputs(self) -> dict[str, str]:
        """Give the hash of the images and labels."""
        return {"digits": digest_of(*_digits())}

    def available_rows(self) -> tuple[int, dict[str, int]]:
        """Count the rows of the part, and the test rows."""
        return len(self.part_rows(len(_digits()[1]) - NUM_EVALUATED)), {"test": NUM_EVALUATED}


@lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Give uint8 [1797, 8, 8, 1] (brightness 0 … 16 spread over 0 … 255) and labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = np.round(np.asarray(images) * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return pixels, np.asarray(labels, np.int64)
