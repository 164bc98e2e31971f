"""Images that are broken, too small or of other channels: named and refused, or handled and told."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from essential_sparsity.backbones.vision import ImagePreprocessing
from essential_sparsity.data import images
from essential_sparsity.data.decoded_images import DecodedImages
from essential_sparsity.data.image_folder import ImageFolder

PLAIN = ImagePreprocessing(8, 3, (0.5,) * 3, (0.2,) * 3, "bicubic")


def photos(folder: Path, sizes: dict[str, tuple[int, ...]], num: int = 3) -> Path:
    """Make `num` images of noise in each class, of the given shape, with other noise in each."""
    noise = np.random.RandomState(0)
    for name, shape in sizes.items():
        (folder / name).mkdir(parents=True)
        for number in range(num):
            Image.fromarray(noise.randint(0, 256, shape, np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """Give two classes of three images."""
    return photos(tmp_path / "train", {"cats": (12, 20, 3), "dogs": (12, 20, 3)})


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Give what is told, as if nothing had been told before."""
    images.tell_once.cache_clear()
    caplog.set_level(logging.WARNING)
    return caplog


def folder_data(train: Path, **options: Any) -> ImageFolder:
    given: dict[str, Any] = {"num_holdout_rows": 1, "cache": train.parent / "cache", "batch_size": 10, **options}
    return ImageFolder(train=train, **given)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-300])


@pytest.mark.parametrize(
    "damage", [cut_short, lambda file: file.write_bytes(b"no image"), lambda file: file.write_bytes(b"")]
)
def test_a_broken_image_is_named_and_refused(train: Path, damage: Callable[[Path], object]) -> None:
    damage(train / "dogs" / "1.png")
    with pytest.raises(ValueError, match=r"dogs/1\.png' cannot be read .*, or give data.on_broken=skip") as raised:
        folder_data(train).prepare(PLAIN)
    assert "\n" not in str(raised.value)


def test_broken_images_are_skipped_by_request_and_told(train: Path, told: pytest.LogCaptureFixture) -> None:
    whole = folder_data(train).inputs()
    cut_short(train / "dogs" / "1.png")
    (train / "cats" / "0.png").write_bytes(b"")
    data = folder_data(train, on_broken="skip")
    assert data.available_rows()[0] == 4
    data.prepare(PLAIN)
    assert data.num_train_rows + data.num_evaluation_rows == 4
    assert "2 of 6 images cannot be read and are left out: cats/0.png, dogs/1.png" in told.text
    assert set(data.inputs()) == {"train: train", "train: train, 2 broken images left out"}
    assert data.inputs()["train: train"] not in (whole["train: train"], folder_data(train).inputs()["train: train"])


def test_skipping_changes_nothing_where_no_image_is_broken(train: Path, told: pytest.LogCaptureFixture) -> None:
    assert folder_data(train, on_broken="skip").inputs() == folder_data(train).inputs()
    assert not told.text


def test_broken_images_are_looked_for_once(train: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_short(train / "dogs" / "1.png")
    first = folder_data(train, on_broken="skip").inputs()
    monkeypatch.setattr("essential_sparsity.data.image_folder._write_broken", None)  # calling it would fail
    assert folder_data(train, on_broken="skip").inputs() == first


def test_a_class_without_a_readable_image_is_refused(train: Path) -> None:
    for file in (train / "dogs").iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"train/dogs has no image that can be read: mend or remove it"):
        folder_data(train, on_broken="skip").available_rows()


def test_small_and_grey_images_are_handled_and_told_once(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    train = photos(tmp_path / "train", {"cats": (5, 6), "dogs": (12, 20, 3)})
    for cache in ("one", "two"):
        data = folder_data(train, cache=tmp_path / cache)
        data.prepare(PLAIN)
        assert next(iter(data.train_dataloader()))["images"].shape == (5, 3, 8, 8)
    assert told.text.count("3 of 6 images are smaller than 8 × 8 and were enlarged") == 1
    assert told.text.count("3 of 6 images are grey and were repeated for three channels") == 1


@pytest.mark.parametrize(("stored", "wanted", "message"), [
    ((6, 8, 3), PLAIN, "images of 6 × 8 are enlarged to the 8 × 8 of the backbone"),
    ((8, 8, 1), PLAIN, "images of one channel are repeated for the three channels of the backbone"),
    ((8, 8, 3), ImagePreprocessing(8, 1, (0.5,), (0.2,), "bicubic"), "images in colour become grey"),
    ((8, 8, 3), PLAIN, ""),
])  # fmt: skip
def test_what_is_done_to_other_sizes_and_channels_is_told(
    stored: tuple[int, ...], wanted: ImagePreprocessing, message: str, told: pytest.LogCaptureFixture
) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (4, *stored), np.uint8)
    examples = images.DecodedImages(pixels, np.arange(4, dtype=np.uint64), np.zeros(4, np.int64), wanted)
    data = images.Images("cifar10")
    data.select_images(examples, {})
    assert message in told.text and bool(told.text) == bool(message)
    assert next(iter(data.train_dataloader()))["images"].shape == (4, wanted.num_channels, 8, 8)


def test_images_may_be_stored_larger_than_the_backbones_size(train: Path) -> None:
    data = folder_data(train, stored_size=11)
    data.prepare(PLAIN)
    assert cast(DecodedImages, data.training_rows().examples).pixels.shape == (6, 11, 11, 3)
    assert next(iter(data.train_dataloader()))["images"].shape == (5, 3, 8, 8)


def test_mistakes_in_options_are_named(train: Path) -> None:
    with pytest.raises(ValueError, match=r"data.on_broken='skipp' is neither: did you mean 'skip'\?"):
        folder_data(train, on_broken="skipp")
    with pytest.raises(ValueError, match=r"data.stored_size=0 is no number of pixels"):
        folder_data(train, stored_size=0)
