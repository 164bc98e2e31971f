"""Views: drawn by (seed, epoch, row) alone, cut as torchvision does, the same from a batch or alone."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms as transforms
import torchvision.transforms.functional as vision
from PIL import Image, ImageFilter, ImageOps

from essential_sparsity.backbones.vision import ImagePreprocessing
from essential_sparsity.callbacks.augmentation import Augment
from essential_sparsity.data import colour, crops, views
from essential_sparsity.data.decoded_images import normalise
from essential_sparsity.data.digits import Digits
from essential_sparsity.data.views import MatchedView, MultiCrop, StandardView

PLAIN = ImagePreprocessing(16, 3, (0.0,) * 3, (1.0,) * 3, "bicubic")
NEUTRAL = {"jitter": 0.0, "grey": 0.0, "blur": (0.0, 0.0, 0.0), "solarise": 0.0}


def noise_pixels(num: int, height: int, width: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).randint(0, 256, (num, height, width, channels), np.uint8))


def smooth_pixels(num: int, size: int, seed: int = 0) -> torch.Tensor:
    """Colours of a photograph's smoothness: an upscaled 4 × 4 picture."""
    small = noise_pixels(num, 4, 4, seed=seed).permute(0, 3, 1, 2).float()
    large = torch.nn.functional.interpolate(small, size=(size, size), mode="bilinear", align_corners=True)
    return large.permute(0, 2, 3, 1).round().to(torch.uint8)


def batch_of(augmentation: Any, pixels: torch.Tensor, *, seed: int = 0, epoch: int = 0) -> dict[str, torch.Tensor]:
    drawn = augmentation.draw(np.arange(len(pixels)), epoch=epoch, seed=seed, shape=tuple(pixels.shape[1:3]))
    return {"pixels": pixels, "view_parameters": drawn}


# --- the contract -----------------------------------------------------------------------------------------------------


def test_multi_crop_gives_global_and_local_views() -> None:
    augmentation = MultiCrop(num_local=3, local_size=6).bind(PLAIN)
    batch = batch_of(augmentation, noise_pixels(5, 20, 24))
    assert batch["view_parameters"].shape == (5, 5, 13) and batch["view_parameters"].dtype == torch.float32
    made = augmentation(batch)
    assert made["global_views"].shape == (2, 5, 3, 16, 16)
    assert made["local_views"].shape == (3, 5, 3, 6, 6)
    assert all(view.is_contiguous() and view.min() >= 0 and view.max() <= 1 for view in made.values())
    assert MultiCrop().bind(SimpleNamespace(size=224, interpolation="bicubic")).local == 96
    assert set(MultiCrop(num_local=0).bind(PLAIN)(batch)) == {"global_views"}


@pytest.mark.parametrize("augmentation", [StandardView(), StandardView(padding=4), MatchedView()], ids=repr)
def test_single_views_give_images(augmentation: Any) -> None:
    bound = augmentation.bind(PLAIN)
    assert bound(batch_of(bound, noise_pixels(5, 20, 24)))["images"].shape == (5, 3, 16, 16)


def test_augment_adds_the_views_to_a_training_batch() -> None:
    augmentation = MatchedView().bind(PLAIN)
    batch = batch_of(augmentation, noise_pixels(3, 16, 16)) | {"labels": torch.arange(3)}
    state = torch.get_rng_state()
    Augment(augmentation).on_train_batch_start(SimpleNamespace(), SimpleNamespace(), batch, 0)  # type: ignore[arg-type]
    assert batch["images"].shape == (3, 3, 16, 16) and torch.equal(batch["labels"], torch.arange(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert Augment.on_validation_batch_start is Augment.__mro__[1].on_validation_batch_start


def test_views_have_the_dtype_to_which_a_trainer_converts_its_inputs() -> None:
    augmentation = MatchedView().bind(PLAIN)
    batch = batch_of(augmentation, noise_pixels(3, 16, 16))
    batch["view_parameters"] = batch["view_parameters"].bfloat16()
    assert augmentation(batch)["images"].dtype == torch.bfloat16


# --- drawn by seed, epoch, row ----------------------------------------------------------------------------------------


def test_a_rows_views_depend_on_seed_epoch_and_row_alone() -> None:
    augmentation = MultiCrop(num_local=2).bind(PLAIN)

    def draw(rows: list[int], seed: int = 1, epoch: int = 2) -> torch.Tensor:
        return augmentation.draw(np.array(rows), epoch=epoch, seed=seed, shape=(32, 32))

    everything = draw(list(range(8)))
    assert torch.equal(draw([5, 2]), everything[[5, 2]])
    for other in (draw([5], seed=2), draw([5], epoch=3), draw([6])):
        assert not torch.equal(other[0], everything[5])
    assert len(everything.flatten(0, 1).unique(dim=0)) == 8 * 4


def test_views_of_a_row_are_the_same_alone_and_in_a_batch() -> None:
    augmentation = MultiCrop(num_local=2, local_size=6).bind(PLAIN)
    for size in (20, 120):  # 120: window by window
        batch = batch_of(augmentation, noise_pixels(20, size, size))
        alone = augmentation({name: value[17:18] for name, value in batch.items()})
        for name, made in augmentation(batch).items():
            assert torch.allclose(made[:, 17:18], alone[name], atol=1e-6)


def test_large_images_are_cut_window_by_window_to_the_same_views(monkeypatch: pytest.MonkeyPatch) -> None:
    augmentation = MultiCrop(num_local=2, local_size=24).bind(PLAIN)
    batch = batch_of(augmentation, noise_pixels(4, 100, 120))
    windowed = augmentation(batch)
    monkeypatch.setattr(views, "WINDOW_PIXELS", 10**9)
    for name, made in augmentation(batch).items():
        assert torch.allclose(made, windowed[name], atol=1e-5)


def test_uniform_draws_are_uniform() -> None:
    draws = views.uniform_draws(np.arange(2000), num_views=3, epoch=0, seed=4)
    assert draws.min() >= 0 and draws.max() < 1
    assert abs(draws.mean() - 0.5) < 1e-3 and abs(draws.std() - math.sqrt(1 / 12)) < 1e-3
    flat = draws.reshape(len(draws), -1)[:, :40]
    assert np.abs(np.corrcoef(flat.T) - np.eye(40)).max() < 0.1


# --- boxes ------------------------------------------------------------------------------------------------------------


class Fed:
    """Stands in for torch inside torchvision's transforms: its random numbers are those of one row of draws."""

    def __init__(self, draws: np.ndarray) -> None:
        self.draws, self.num = draws, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, _: int) -> "Fed":
        return self

    def uniform_(self, low: float, high: float) -> torch.Tensor:
        share = self.draws[self.num // 2 + (0, crops.NUM_TRIES)[self.num % 2]]
        self.num += 1
        return torch.tensor(float(low) + (float(high) - float(low)) * share, dtype=torch.float64)

    def log(self, value: torch.Tensor) -> torch.Tensor:
        return torch.log(value.double() if value.ndim == 0 else torch.tensor(crops.RATIO, dtype=torch.float64))

    def randint(self, _: int, high: int, size: tuple[int, ...]) -> torch.Tensor:
        place = 2 * crops.NUM_TRIES + self.__dict__.setdefault("place", 0)
        self.place += 1
        return torch.tensor([int(self.draws[place] * high)])


@pytest.mark.parametrize(("shape", "scale"), [
    ((32, 32), (0.05, 0.4)), ((32, 32), (0.4, 1.0)), ((20, 50), (0.4, 1.0)), ((50, 20), (0.9, 1.0)),
    ((7, 31), (1.0, 1.0)),
])  # fmt: skip
def test_boxes_are_those_of_torchvision_from_the_same_uniform_numbers(
    shape: tuple[int, int], scale: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = views.uniform_draws(np.arange(300), num_views=1, epoch=0, seed=0)
    boxes = crops.draw_boxes(draws, shape=shape, scale=np.array([scale]))[:, 0]
    for box, row in zip(boxes, draws[:, 0], strict=True):
        monkeypatch.setattr(transforms.transforms, "torch", Fed(row))
        wanted = transforms.RandomResizedCrop.get_params(torch.empty(3, *shape), list(scale), list(crops.RATIO))
        assert tuple(box) == wanted


def test_shifted_boxes_keep_the_size_and_reach_over_the_border() -> None:
    draws = views.uniform_draws(np.arange(500), num_views=1, epoch=0, seed=0)
    boxes = crops.draw_shifts(draws, shape=(8, 10), padding=2)[:, 0]
    assert (boxes[:, 2:] == (8, 10)).all()
    assert set(boxes[:, 0]) == set(boxes[:, 1]) == {-2, -1, 0, 1, 2}


# --- pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("height", [16, 130])
def test_crops_are_torchvisions_antialiased_ones(interpolation: str, height: int) -> None:
    """Oracle: torchvision's resize of each crop alone; larger and smaller than the view, mirrored or not."""
    pixels = noise_pixels(12, height, height + 6)
    augmentation = MultiCrop(num_local=3, local_size=7, **NEUTRAL).bind(
        ImagePreprocessing(16, 3, (0.0,) * 3, (1.0,) * 3, interpolation)
    )
    batch = batch_of(augmentation, pixels)
    made = augmentation(batch)
    mode = vision.InterpolationMode(interpolation)
    for row, parameters in enumerate(batch["view_parameters"]):
        image = pixels[row].permute(2, 0, 1).float() / 255
        for view, (top, left, tall, wide, mirrored, *_) in enumerate(parameters.tolist()):
            name, place = ("global_views", view) if view < 2 else ("local_views", view - 2)
            size = made[name].shape[-1]
            wanted = vision.resized_crop(
                image, int(top), int(left), int(tall), int(wide), [size, size], mode, antialias=True
            )
            wanted = (wanted.flip(-1) if mirrored else wanted).clamp(0, 1)
            assert torch.allclose(made[name][place, row], wanted, atol=2e-5)


def test_shifted_views_are_torchvisions_padded_crops() -> None:
    pixels = noise_pixels(20, 16, 16)
    augmentation = StandardView(padding=4, mirror=0.0).bind(PLAIN)
    batch = batch_of(augmentation, pixels)
    for image, made, parameters in zip(pixels, augmentation(batch)["images"], batch["view_parameters"], strict=True):
        top, left = (int(value) + 4 for value in parameters[0, :2])
        padded = vision.pad(image.permute(2, 0, 1), [4])
        assert torch.allclose(made, vision.crop(padded, top, left, 16, 16).float() / 255, atol=1e-6)


def test_a_whole_view_is_close_to_pils() -> None:
    """Oracle: DINO's pipeline in PIL, step by step, from the drawn parameters; PIL rounds to bytes after each step."""
    pixels = smooth_pixels(20, 80)
    augmentation = MultiCrop(num_local=3, hue=0.0).bind(ImagePreprocessing(64, 3, (0.0,) * 3, (1.0,) * 3, "bicubic"))
    batch = batch_of(augmentation, pixels)
    made = augmentation(batch)
    errors = []
    for row, parameters in enumerate(batch["view_parameters"].tolist()):
        for view, values in enumerate(parameters):
            name, place = ("global_views", view) if view < 2 else ("local_views", view - 2)
            wanted = in_pil(Image.fromarray(pixels[row].numpy()), values, made[name].shape[-1])
            errors.append(float((made[name][place, row] - vision.to_tensor(wanted)).abs().mean()))
    assert np.mean(errors) < 0.006 and np.max(errors) < 0.04


def in_pil(image: Any, values: list[float], size: int) -> Any:
    """Make one view as DINO's code does, of parameters in the order of CROP_COLUMNS and COLOUR_COLUMNS."""
    top, left, height, width, mirrored, sigma, *tint = values
    view = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BICUBIC)
    view = ImageOps.mirror(view) if mirrored else view
    steps: tuple[Any, ...] = (vision.adjust_brightness, vision.adjust_contrast, vision.adjust_saturation)
    for step in colour.ORDERS[int(tint[4])]:
        view = steps[step](view, tint[step]) if step < len(steps) else view
    view = ImageOps.grayscale(view).convert("RGB") if tint[5] else view
    view = view.filter(ImageFilter.GaussianBlur(sigma)) if sigma else view
    return ImageOps.solarize(view) if tint[6] else view


# --- in the data ------------------------------------------------------------------------------------------------------


def test_training_batches_carry_pixels_and_parameters_and_evaluation_batches_images() -> None:
    data = Digits(augmentation=MultiCrop(num_local=2, local_size=4), batch_size=50)
    data.check()
    data.prepare(ImagePreprocessing(8, 1, (0.3,), (0.4,), "bicubic"))
    loader = data.train_dataloader()
    batch = next(iter(loader))
    assert set(batch) == {"pixels", "view_parameters", "labels", "row"}
    assert batch["pixels"].dtype == torch.uint8 and batch["pixels"].shape == (50, 8, 8, 1)
    assert batch["view_parameters"].shape == (50, 4, 13)
    made = data.augmentation(batch)
    assert made["global_views"].shape == (2, 50, 1, 8, 8) and made["local_views"].shape == (2, 50, 1, 4, 4)
    assert set(next(iter(data.evaluation_dataloaders()["test"]))) == {"images", "labels", "row"}
    plain = data.training_rows()
    assert set(plain.batch(np.arange(3), 0)) == {"images", "labels", "row"}


def test_crops_do_not_depend_on_batches_or_resumption() -> None:
    def drawn(batch_size: int, start: int = 0) -> dict[int, torch.Tensor]:
        data = Digits(augmentation=MatchedView(), batch_size=batch_size)
        data.prepare(ImagePreprocessing(8, 1, (0.3,), (0.4,), "bicubic"))
        data.seed(3)
        loader = data.train_dataloader()
        loader.load_state_dict({**loader.state_dict(), "epoch": 2, "position": start})
        return {int(row): view for batch in loader for row, view in zip(batch["row"], batch["view_parameters"])}

    whole, resumed = drawn(32), drawn(32, start=20)
    assert len(resumed) < len(whole) and all(torch.equal(view, whole[row]) for row, view in resumed.items())
    assert all(torch.equal(view, whole[row]) for row, view in drawn(100).items())


def test_views_are_normalised_for_the_backbone_whatever_its_channels() -> None:
    """A view of the whole image, not mirrored, is what evaluation sees."""
    for stored, wanted in ((1, 3), (3, 1), (3, 3)):
        preprocessing = ImagePreprocessing(16, wanted, (0.4, 0.5, 0.6)[:wanted], (0.2, 0.3, 0.4)[:wanted], "bilinear")
        augmentation = StandardView(padding=0, mirror=0.0).bind(preprocessing)
        pixels = noise_pixels(3, 20, 20, stored)
        seen = normalise(pixels.permute(0, 3, 1, 2).float() / 255, preprocessing)
        assert torch.allclose(augmentation(batch_of(augmentation, pixels))["images"], seen, atol=1e-4)


# --- threads ----------------------------------------------------------------------------------------------------------


def test_threads_share_a_batch_and_change_no_view() -> None:
    augmentation = MultiCrop(num_local=2, local_size=24).bind(PLAIN)
    batch, before = batch_of(augmentation, noise_pixels(9, 100, 100)), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = augmentation(batch)
        torch.set_num_threads(3)
        shared = augmentation(batch)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert all(torch.allclose(alone[name], shared[name], atol=1e-6) for name in alone)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
def test_a_card_makes_the_views_that_a_cpu_makes() -> None:
    for size, pixels in ((20, noise_pixels(9, 20, 20)), (100, noise_pixels(9, 100, 110))):
        augmentation = MultiCrop(num_local=2, local_size=max(6, size // 4)).bind(PLAIN)
        batch = batch_of(augmentation, pixels)
        on_card = augmentation({name: value.cuda() for name, value in batch.items()})
        for name, views_of in augmentation(batch).items():
            assert (on_card[name].cpu() - views_of).abs().mean() < 1e-4  # a value beside solarise's edge may flip


# --- what is wrong, said in one line ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "message"), [
    (lambda: MultiCrop(num_global=0), "num_global=0 is no whole number of at least 1"),
    (lambda: MultiCrop(local_scale=(0.4, 0.05)), r"local_scale=\(0.4, 0.05\) is no range in \(0, 1\]"),
    (lambda: MultiCrop(blur=(1.0, 2.0, 0.5)), r"blur=.* lies outside \[0, 1\]"),
    (lambda: MatchedView(blur=(1.0, 0.1)), "no three probabilities"),  # type: ignore[arg-type]
    (lambda: MatchedView(hue=0.7), r"hue=0.7 lies outside \[0, 0.5\]"),
    (lambda: StandardView(padding=-1), "padding=-1 is no number of pixels"),
    (lambda: StandardView().size, r"call bind\(backbone.preprocessing\(\)\) first"),
    (lambda: StandardView().bind(SimpleNamespace(interpolation="nearest")), "'nearest' is no filter: choose bilinear"),
    (lambda: Digits(augmentation={"scale": 1}), r"makes no views: use \+data/augmentation=multi_crop"),
    (lambda: Digits(augmentation=MultiCrop(), noise=0.1), "noise=0.1 has no meaning beside an augmentation"),
])  # fmt: skip
def test_mistakes_in_augmentations_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_blurring_holds_no_subnormal_numbers_and_its_weights_sum_to_one() -> None:
    matrices = crops.blurring(torch.tensor([0.0, 0.1, 1.0, 2.0]), 224)
    assert not ((matrices > 0) & (matrices < 1e-12)).any()
    torch.testing.assert_close(matrices.sum(-1), torch.ones(4, 224))
    assert torch.equal(matrices[0], torch.eye(224))
