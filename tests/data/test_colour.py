"""Colour: one matrix and one offset do what torchvision and kornia do step by step; what differs is bounded here."""

import io
from pathlib import Path
from typing import Any

import kornia
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torchvision.transforms.functional as vision
from PIL import Image

from essential_sparsity.data import colour, crops

STEPS: tuple[Any, ...] = (vision.adjust_brightness, vision.adjust_contrast, vision.adjust_saturation, vision.adjust_hue)


def some_views(num: int, *, low: float = 0.0, high: float = 1.0, seed: int = 0) -> torch.Tensor:
    """Smooth colours between two brightnesses: [num, 3, 16, 16]."""
    small = torch.from_numpy(np.random.RandomState(seed).uniform(low, high, (num, 3, 4, 4)).astype(np.float32))
    return torch.nn.functional.interpolate(small, size=(16, 16), mode="bilinear", align_corners=True)


def columns(num: int, **values: float) -> torch.Tensor:
    neutral = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, "order": 0.0, "grey": 0.0}
    one = neutral | {"solarised": 0.0} | values
    return torch.tensor([[one[name] for name in colour.COLOUR_COLUMNS]]).repeat(num, 1)


def drawn(num: int, strengths: tuple[float, float, float, float], grey: float = 0.0) -> torch.Tensor:
    draws = np.random.RandomState(1).uniform(size=(num, colour.NUM_COLOUR_DRAWS))
    values = colour.draw_colours(draws, strengths=strengths, jitter=1.0, grey=grey, solarise=np.zeros(1))
    return torch.from_numpy(values.astype(np.float32))


def ours(views: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
    matrix, offset = colour.colour_matrices(colours, views.mean((-2, -1)))
    return colour.recolour(views, matrix, offset, colours[:, -1])


def in_steps(view: torch.Tensor, values: list[float]) -> torch.Tensor:
    """Adjust one view as torchvision's ColorJitter and RandomGrayscale do, in the order that was drawn."""
    for step in colour.ORDERS[int(values[4])]:
        view = STEPS[step](view, values[step])
    return vision.rgb_to_grayscale(view, 3) if values[5] else view


def test_any_order_of_the_steps_is_one_matrix() -> None:
    """Oracle: torchvision step by step, on colours that no step drives out of [0, 1]; it rounds LUMA to 0.2989."""
    views, colours = some_views(200, low=0.35, high=0.6), drawn(200, (0.4, 0.4, 0.2, 0.0), grey=0.3)
    wanted = torch.stack([in_steps(view, row) for view, row in zip(views, colours.tolist(), strict=True)])
    assert len(colours[:, 4].unique()) == 24 and 0 < colours[:, 5].sum() < 200
    assert torch.allclose(ours(views, colours), wanted, atol=3e-4)


def test_colours_agree_with_kornia_where_it_defines_the_same() -> None:
    views = some_views(8)
    pairs = [
        (columns(8, brightness=1.3), kornia.enhance.adjust_brightness_accumulative(views, 1.3)),
        (columns(8, contrast=0.7), kornia.enhance.adjust_contrast_with_mean_subtraction(views, 0.7)),
        (columns(8, saturation=1.2), kornia.enhance.adjust_saturation_with_gray_subtraction(views, 1.2)),
        (columns(8, grey=1.0), kornia.color.rgb_to_grayscale(views).expand_as(views)),
        (columns(8, solarised=1.0), kornia.enhance.solarize(views, 0.5)),
    ]
    for colours, wanted in pairs:
        assert torch.allclose(ours(views, colours), wanted.clamp(0, 1), atol=1e-5)


@pytest.mark.parametrize("turns", [1 / 3, -1 / 3])
def test_a_third_of_a_turn_of_hue_swaps_channels_as_hsv_does(turns: float) -> None:
    views = some_views(8)
    assert torch.allclose(ours(views, columns(8, hue=turns)), vision.adjust_hue(views, turns), atol=1e-4)


def test_grey_stays_grey_and_one_channel_is_treated_alike() -> None:
    grey = some_views(50)[:, :1]
    colours = drawn(50, (0.4, 0.4, 0.2, 0.1), grey=0.2)
    wide = ours(grey.expand(-1, 3, -1, -1), colours)
    assert torch.allclose(ours(grey, colours).expand_as(wide), wide, atol=1e-5)


def test_draws_have_torchvisions_bounds_and_shares() -> None:
    draws = np.random.RandomState(0).uniform(size=(20_000, colour.NUM_COLOUR_DRAWS))
    values = colour.draw_colours(draws, strengths=(0.4, 1.5, 0.2, 0.1), jitter=0.8, grey=0.2, solarise=np.full(1, 0.3))
    applied = values[draws[:, 0] < 0.8]
    assert abs(len(applied) / 20_000 - 0.8) < 0.01
    assert (values[draws[:, 0] >= 0.8, :4] == (1, 1, 1, 0)).all()
    for column, (low, high) in enumerate([(0.6, 1.4), (0.0, 2.5), (0.8, 1.2), (-0.1, 0.1)]):
        assert low <= applied[:, column].min() < low + 0.01 and high - 0.01 < applied[:, column].max() <= high
    assert set(values[:, 4]) == set(range(24))
    assert np.abs(values[:, 5:].mean(0) - (0.2, 0.3)).max() < 0.01


# --- blur -------------------------------------------------------------------------------------------------------------


def test_blur_is_kornias_away_from_the_border() -> None:
    view = some_views(1)
    for sigma in (0.4, 1.0, 2.0):
        blur = crops.blurring(torch.tensor([sigma]), 16)
        made = blur[:, None] @ view @ blur[:, None].mT
        exact = kornia.filters.gaussian_blur2d(view, (15, 15), (sigma, sigma), border_type="replicate")
        assert torch.allclose(made[..., 7:9, 7:9], exact[..., 7:9, 7:9], atol=1e-3)
    assert torch.equal(crops.blurring(torch.tensor([0.0]), 5)[0], torch.eye(5))


# --- real images ------------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_jitter_of_real_images_is_close_to_pils(es_data: Path) -> None:
    """Mean errors in units of full brightness; the docstring of `colour_matrices` has the first one."""
    rows = pq.read_table(es_data / "cifar10" / "test.parquet", columns=["img"]).slice(0, 128)["img"]
    pictures = [Image.open(io.BytesIO(row["bytes"].as_py())) for row in rows]
    images = torch.stack([vision.to_tensor(picture) for picture in pictures])

    def error(colours: torch.Tensor) -> float:
        wanted = []
        for picture, values in zip(pictures, colours.tolist(), strict=True):
            changed: Any = picture
            for step in colour.ORDERS[int(values[4])]:
                changed = STEPS[step](changed, values[step])
            wanted.append(vision.to_tensor(changed))
        return float((ours(images, colours) - torch.stack(wanted)).abs().mean())

    num = len(images)
    assert error(columns(num, hue=0.1)) < 0.018
    assert error(drawn(num, (0.4, 0.4, 0.2, 0.0))) < 0.008
    assert error(drawn(num, (0.4, 0.4, 0.2, 0.1))) < 0.016
