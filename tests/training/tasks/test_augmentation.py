"""Augmentation of whole batches, what the step makes of their bytes, and evaluation in batches of one size."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodels.data.preprocessing import scale_pixels, unscale_pixels
from jaxmodels.training.draws import Draws
from jaxmodels.training.tasks.augmentation import draw_recoloring, shift_images
from jaxmodels.training.tasks.evaluation import EVALUATION_BATCH, call_in_batches
from jaxmodels.training.tasks.inputs import add_noise, recolor_images, scale_images
from jaxmodels.training.tasks.psnr import psnr
from tests.training.small_tasks import TASKS


BYTES = {
    np.dtype(t) for t in (np.uint8, np.uint16, np.uint32, np.float32)
}  # texts, keys and recolouring are small
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 9, 11, 3), np.uint8)


def draws(n: int = 6) -> Draws:
    return Draws(0, np.arange(n))


def test_scaling_and_back():
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)

    assert scale_pixels(values).dtype == np.float32
    assert scale_pixels(values).min() == -1
    assert scale_pixels(values).max() == 1
    np.testing.assert_array_equal(unscale_pixels(scale_pixels(values)), values)
    np.testing.assert_array_equal(
        unscale_pixels(np.array([[[[-3.0]], [[7.0]]]], np.float32)).ravel(), [0, 255]
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_a_shift_continues_the_border(channels):
    images = IMAGES[..., :channels]
    results = shift_images(images, draws(), shift=3, flip=True)

    again = draws()
    shifts, mirrored = again.integers(-3, 4, 2), again.uniform(0, 1) < 0.5
    assert 0 < mirrored.sum() < len(mirrored)
    for image, result, (down, right), mirror in zip(images, results, shifts, mirrored, strict=True):
        padded = np.pad(image, ((3, 3), (3, 3), (0, 0)), mode="edge")
        expected = padded[3 - down : 12 - down, 3 - right : 14 - right]
        np.testing.assert_array_equal(result, expected[:, ::-1] if mirror else expected)


@pytest.mark.parametrize("flip", [False, True])
def test_shifts_with_a_zoom_of_nothing_are_those_without(flip):
    """Two ways to take the pixels."""
    with_zoom = shift_images(IMAGES, draws(), shift=3, flip=flip, zoom=1e-9)
    np.testing.assert_array_equal(with_zoom, shift_images(IMAGES, draws(), shift=3, flip=flip))


def test_all_shifts_occur():
    image = np.zeros((1, 7, 7, 1), np.uint8)
    image[0, 3, 3] = 1
    results = shift_images(np.repeat(image, 300, axis=0), draws(300), shift=2)

    places = {tuple(np.argwhere(result)[0, :2]) for result in results}
    assert places == {(3 + down, 3 + right) for down in range(-2, 3) for right in range(-2, 3)}


def test_no_shift_leaves_images_alone():
    assert shift_images(IMAGES, draws(), shift=0) is IMAGES


def test_zoom_enlarges_and_reduces_about_the_middle():
    image = np.zeros((1, 21, 21, 1), np.uint8)
    image[0, 5:16, 5:16] = 1  # 11 × 11 in the middle
    results = shift_images(np.repeat(image, 200, axis=0), draws(200), shift=0, zoom=0.4)

    np.testing.assert_array_equal(results, results[:, ::-1, ::-1], err_msg="the middle stays")
    sides = np.sqrt(results.sum(axis=(1, 2, 3)))
    assert (sides.min(), sides.max()) == (7, 15)  # 11 · 0.6 and 11 · 1.4, in odd numbers of pixels
    np.testing.assert_array_equal(sides, results[:, 10].sum(axis=(1, 2)), err_msg="equally both ways")


@pytest.mark.parametrize("name", TASKS)
def test_examples_are_the_same_alone_and_in_any_part_of_a_batch(name):
    """Bytes and draws, and after the step's part of it what the model reads, bit for bit."""
    task = augmented(TASKS[name]())
    indices, positions = np.arange(9) * 3 % task.examples, 10**9 + np.arange(9)
    whole = task.batch(indices, Draws(7, positions))
    assert {array.dtype for array in whole.values()} <= BYTES | {np.dtype(np.int32)}  # and labels
    inputs = jax.jit(task.inputs)
    parts = [[i] for i in range(9)], [[0, 2, 4, 6, 8], [1, 3, 5, 7]], [[*range(4)], [*range(4, 9)]]
    for rows in (row for split in parts for row in split):
        part = task.batch(indices[rows], Draws(7, positions[rows]))
        for a, b in ((part, whole), (inputs(part), inputs(whole))):
            for key in b:
                np.testing.assert_array_equal(a[key], np.asarray(b[key])[rows], err_msg=f"{key} {rows}")


def augmented(task: Any) -> Any:
    for setting, value in (("flip", True), ("zoom", 0.3), ("recolor", 0.4)):
        if hasattr(task, setting):
            setattr(task, setting, value)
    return task


def test_recoloring_keeps_to_its_strength():
    images = np.zeros((500, 2, 2, 3), np.float32)
    images[:, 1] = 0.5
    drawn = draw_recoloring(draws(500), channels=3, strength=0.4)
    results = np.asarray(recolor_images(jnp.asarray(images), jnp.asarray(drawn)))

    offsets, gains = results[:, 0, 0], (results[:, 1, 0] - results[:, 0, 0]) / 0.5
    for drawn, middle in ((offsets, 0), (gains, 1)):
        assert abs(drawn - middle).max() == pytest.approx(0.4, rel=0.02)
        assert abs(drawn - middle).max() <= 0.4 + 1e-6
        assert abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.2, "every channel for itself"
    np.testing.assert_array_equal(results[:, :, 0], results[:, :, 1], err_msg="all pixels alike")


def test_recoloring_stays_in_range():
    drawn = jnp.asarray(draw_recoloring(draws(), channels=3, strength=0.9))
    assert abs(recolor_images(scale_images(jnp.asarray(IMAGES)), drawn)).max() == 1


def test_bytes_are_scaled_on_the_device_as_elsewhere():
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    scaled = np.asarray(jax.jit(scale_images)(values))

    np.testing.assert_allclose(scaled, scale_pixels(values), rtol=0, atol=1.2e-7)
    expected = (values.astype(np.float32) - np.float32(127.5)) * np.float32(1 / 127.5)
    np.testing.assert_array_equal(scaled, expected, err_msg="the compiler's own arithmetic")
    np.testing.assert_array_equal(unscale_pixels(scaled), values)


def test_noise_depends_on_the_key_alone():
    images = jnp.zeros((400, 4, 4, 3), jnp.float32)
    noised = np.asarray(add_noise(images, jnp.asarray(draws(400).keys()), deviation=2.0))

    assert np.std(noised) == pytest.approx(2, rel=0.03)
    assert abs(np.mean(noised)) < 0.05
    assert len(np.unique(noised.round(4))) > 15_000, "every pixel of every image for itself"


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
