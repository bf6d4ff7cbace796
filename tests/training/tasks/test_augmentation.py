"""Augmentation, shifted by each image's own generator, and evaluation in batches of one size."""

import numpy as np
import pytest

from jaxmodels.data.preprocessing import scale_pixels, unscale_pixels
from jaxmodels.training.tasks.augmentation import recolor_images, shift_images
from jaxmodels.training.tasks.evaluation import EVALUATION_BATCH, call_in_batches
from jaxmodels.training.tasks.psnr import psnr


IMAGES = np.random.default_rng(0).integers(0, 256, (6, 9, 11, 3), np.uint8)


def draws(*seeds: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in seeds]


def test_scaling_and_back():
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)

    assert scale_pixels(values).dtype == np.float32
    assert scale_pixels(values).min() == -1
    assert scale_pixels(values).max() == 1
    np.testing.assert_array_equal(unscale_pixels(scale_pixels(values)), values)
    np.testing.assert_array_equal(
        unscale_pixels(np.array([[[[-3.0]], [[7.0]]]], np.float32)).ravel(), [0, 255]
    )


@pytest.mark.parametrize("seed", range(8))
def test_a_move_continues_the_border(seed):
    (result,) = shift_images(IMAGES[:1], draws(seed), shift=3, flip=True)

    generator = np.random.default_rng(seed)
    down, right = generator.integers(-3, 4, 2)
    padded = np.pad(IMAGES[0], ((3, 3), (3, 3), (0, 0)), mode="edge")
    expected = padded[3 - down : 12 - down, 3 - right : 14 - right]
    np.testing.assert_array_equal(result, expected[:, ::-1] if generator.random() < 0.5 else expected)


def test_all_moves_occur():
    image = np.zeros((1, 7, 7, 1), np.uint8)
    image[0, 3, 3] = 1
    results = shift_images(np.repeat(image, 300, axis=0), draws(*range(300)), shift=2)

    places = {tuple(np.argwhere(result)[0, :2]) for result in results}
    assert places == {(3 + down, 3 + right) for down in range(-2, 3) for right in range(-2, 3)}


def test_a_move_depends_on_the_generator_alone():
    together = shift_images(IMAGES, draws(0, 1, 2, 3, 4, 5), shift=2, flip=True)
    apart = [shift_images(IMAGES[i : i + 1], draws(i), shift=2, flip=True)[0] for i in range(6)]

    np.testing.assert_array_equal(together, apart)


def test_no_shift_leaves_images_alone():
    np.testing.assert_array_equal(shift_images(IMAGES, draws(*range(6)), shift=0), IMAGES)


def test_zoom_enlarges_and_reduces_about_the_middle():
    image = np.zeros((1, 21, 21, 1), np.uint8)
    image[0, 5:16, 5:16] = 1  # 11 × 11 in the middle
    results = shift_images(np.repeat(image, 200, axis=0), draws(*range(200)), shift=0, zoom=0.4)

    np.testing.assert_array_equal(results, results[:, ::-1, ::-1], err_msg="the middle stays")
    sides = np.sqrt(results.sum(axis=(1, 2, 3)))
    assert (sides.min(), sides.max()) == (7, 15)  # 11 · 0.6 and 11 · 1.4, in odd numbers of pixels
    np.testing.assert_array_equal(sides, results[:, 10].sum(axis=(1, 2)), err_msg="equally both ways")


def test_zoom_depends_on_the_generator_alone():
    together = shift_images(IMAGES, draws(*range(6)), shift=2, flip=True, zoom=0.3)
    apart = [shift_images(IMAGES[i : i + 1], draws(i), shift=2, flip=True, zoom=0.3)[0] for i in range(6)]

    np.testing.assert_array_equal(together, apart)


def test_recoloring_keeps_to_its_strength():
    images = np.zeros((500, 2, 2, 3), np.float32)
    images[:, 1] = 0.5
    results = recolor_images(images, draws(*range(500)), strength=0.4)

    offsets, gains = results[:, 0, 0], (results[:, 1, 0] - results[:, 0, 0]) / 0.5
    for drawn, middle in ((offsets, 0), (gains, 1)):
        assert abs(drawn - middle).max() == pytest.approx(0.4, rel=0.02)
        assert abs(drawn - middle).max() <= 0.4 + 1e-6
        assert abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.2, "every channel for itself"
    np.testing.assert_array_equal(results[:, :, 0], results[:, :, 1], err_msg="all pixels alike")


def test_recoloring_stays_in_range_and_may_be_left_out():
    images = scale_pixels(IMAGES)
    assert abs(recolor_images(images, draws(*range(6)), strength=0.9)).max() == 1
    assert recolor_images(images, draws(*range(6)), strength=0) is images


@pytest.mark.parametrize("n", [3, EVALUATION_BATCH, EVALUATION_BATCH + 5])
def test_in_batches(n):
    shapes = []

    def call(name, batch):
        shapes.append(batch["x"].shape)
        return {"name": np.full(len(batch["x"]), name), "twice": 2 * batch["x"]}

    outputs = call_in_batches(call, "double", n, lambda numbers: {"x": 10 * numbers})

    np.testing.assert_array_equal(outputs["twice"], 20 * np.arange(n))
    assert set(outputs["name"]) == {"double"}
    assert set(shapes) == {(EVALUATION_BATCH,)}


def test_psnr():
    clean = np.zeros((2, 4, 4, 3))

    assert psnr(clean + 0.2, clean) == pytest.approx(20)
    assert psnr(clean + 50, clean + 0.8) == pytest.approx(20), "cut off at 1 first"
