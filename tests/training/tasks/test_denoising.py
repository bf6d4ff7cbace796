"""Denoising: the published recipe's loss, the noise, the probe, and wrong data."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import nnx

from jaxmodels import Glom, GlomConfig, load_state_dict, to_state_dict
from jaxmodels.data.datasets import LabelledImages, LabelledSplits
from jaxmodels.data.preprocessing import scale_pixels
from jaxmodels.nn import Linear
from jaxmodels.training.draws import Draws
from jaxmodels.training.tasks.denoising import Denoiser, Denoising, probe_grid
from tests.training.small_tasks import inputs_of


CONFIG = GlomConfig(dim=8, levels=2, image_size=64, patch_size=4)


def part(n: int, seed: int, shape: tuple[int, int, int] = (8, 8, 3)) -> LabelledImages:
    """Blocks of one colour; dark images and bright ones."""
    labels = (np.arange(n) % 2).astype(np.int32)
    blocks = np.random.default_rng(seed).integers(
        0, 100, (n, shape[0] // 4, shape[1] // 4, shape[2]), np.uint8
    )
    blocks += (150 * labels[:, None, None, None]).astype(np.uint8)
    return LabelledImages(images=blocks.repeat(4, axis=1).repeat(4, axis=2), labels=labels)


def data(**changes: Any) -> LabelledSplits:
    parts = {"train": part(12, 0), "validation": part(4, 1), "test": part(10, 2)}
    return LabelledSplits(**{"source": "blocks", "class_names": ("dark", "bright"), **parts, **changes})


def task_of(splits: LabelledSplits | None = None, config: GlomConfig = CONFIG, **changes: Any) -> Denoising:
    return Denoising(config, splits or data(), **({"noise": 0.5, "shift": 0} | changes))


def fresh(task: Denoising) -> Denoiser:
    return task.model(dtype=None, param_dtype=jnp.float32, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def task() -> Denoising:
    return task_of()


@pytest.fixture(scope="module")
def model(task) -> Denoiser:
    return fresh(task)


@pytest.fixture(scope="module")
def call(task, model) -> Any:
    functions = {name: nnx.jit(function) for name, function in task.functions.items()}
    return lambda name, batch: jax.tree.map(np.asarray, functions[name](model, batch))


def wave(shape: tuple[int, ...], k: float = 0) -> np.ndarray:
    i = np.arange(1, np.prod(shape) + 1, dtype=np.float64)
    return np.sin(0.1 * (i * i) + k).reshape(shape)


@pytest.mark.usefixtures("unchecked_types")
def test_golden_loss_of_the_published_recipe():
    glom = Glom(GlomConfig(dim=8, levels=3, image_size=12, patch_size=4), rngs=nnx.Rngs(0))
    weights = {
        name: 0.3 * wave(array.shape, k).astype(np.float32)
        for k, (name, array) in enumerate(to_state_dict(glom).items())
    }
    load_state_dict(glom, weights)
    decoder = Linear(8, 48, rngs=nnx.Rngs(0))
    decoder.kernel[...] = jnp.asarray(0.3 * wave((48, 8)).T, jnp.float32)
    decoder.bias[...] = jnp.asarray(0.3 * wave((48,), 1), jnp.float32)
    image, noise = (wave((2, 3, 12, 12), k).transpose(0, 2, 3, 1).astype(np.float32) for k in (0, 5))

    forward = nnx.jit(lambda model, batch: task_of().forward(model, batch, None))
    outputs = forward(Denoiser(glom, decoder), {"clean": image, "noised": image + noise})
    loss, metrics = task_of().loss(None, outputs)

    assert float(loss) == pytest.approx(0.5615241980188352, abs=1e-6)
    assert float(metrics["psnr"]) == pytest.approx(10 * np.log10(4 / 0.5615241980188352), abs=1e-5)
    assert outputs["squared_error"].shape == (2,)


def test_later_steps_change_nothing(task, model):
    """The published recipe runs 2 · levels steps; only those up to the decoded one receive a gradient."""
    batch = jax.tree.map(jnp.asarray, inputs_of(task, range(4)))

    def ours(model):
        return task.loss(model, task.forward(model, batch, None))[0]

    def published(model):
        top = model.glom(batch["noised"], return_all=True)[model.glom.config.levels + 1, :, :, -1]
        patches = model.decoder(top)
        image = rearrange(patches, "b (h w) (p1 p2 c) -> b (h p1) (w p2) c", h=2, p1=4, p2=4)
        return jnp.mean(jnp.square(image - batch["clean"]))

    (a, gradient), (b, expected) = (nnx.jit(nnx.value_and_grad(f))(model) for f in (ours, published))

    assert float(a) == pytest.approx(float(b), rel=1e-6)
    for name, value in nnx.to_flat_state(gradient):
        other = dict(nnx.to_flat_state(expected))[name]
        np.testing.assert_allclose(value[...], other[...], rtol=1e-4, atol=1e-7)


def test_the_size_is_that_of_the_data():
    shape = (8, 12, 3)
    splits = data(train=part(3, 0, shape), validation=part(3, 1, shape), test=part(3, 2, shape))

    assert task_of().config.image_size == 8
    assert task_of(splits).config == GlomConfig(dim=8, levels=2, image_size=12, patch_size=4)


def test_grey_images_have_three_channels():
    shape = (8, 8, 1)
    task = task_of(data(train=part(6, 0, shape), validation=part(3, 1, shape), test=part(3, 2, shape)))

    images = task.batch(np.arange(6), Draws(0, np.arange(6)))["images"]

    np.testing.assert_array_equal(images, np.repeat(part(6, 0, shape).images, 3, axis=-1))


def test_batch(task):
    indices = np.array([5, 3, 3])

    inputs = inputs_of(task, indices)

    clean = scale_pixels(task.splits.train.images[indices])
    np.testing.assert_allclose(inputs["clean"], clean, rtol=0, atol=1.2e-7)
    noise = inputs["noised"] - inputs["clean"]
    assert not np.array_equal(noise[1], noise[2]), "one example at two positions"
    again = inputs_of(task, indices[1:], first=1)
    np.testing.assert_array_equal(again["noised"], inputs["noised"][1:])
    assert {array.dtype for array in inputs.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("noise", [0.1, 2])
def test_noise_has_the_scale_that_was_asked_for(noise):
    task = task_of(noise=noise, shift=3)

    batch = inputs_of(task, [0] * 60)

    difference = batch["noised"] - batch["clean"]
    assert np.std(difference) == pytest.approx(noise, rel=0.05)
    assert abs(np.mean(difference)) < 0.05 * noise
    assert len(np.unique(batch["clean"], axis=0)) > 5, "shifted at random"


def test_evaluation(task):
    """A model that returns its input: PSNR is that of the noise, and the probe finds what the features hold."""

    def call(name, batch):
        if name == "clean":
            return batch["noised"]
        bright = batch["images"].mean(axis=(1, 2, 3)) > 0
        return np.stack([bright, np.zeros_like(bright)], axis=1).astype(np.float32)

    metrics = task.evaluate(call, "test")

    baselines = task.baselines()
    assert metrics == {"psnr": baselines["noised images"]["psnr"], "probe_top1": 1.0, "probe_top5": 1.0}
    assert task.evaluate(call, "test") == metrics, "the same noise every time"
    assert list(task.evaluate(call, "validation")) == ["psnr"]
    assert baselines["7×7 linear filter"]["psnr"] > baselines["noised images"]["psnr"] + 2
    assert baselines["majority (pixels)"] == {"probe_top1": 0.5, "probe_top5": 1.0}
    assert {"5 nearest neighbours (pixels)", "logistic regression (pixels)"} < set(baselines)


def test_one_class_has_no_probe():
    alone = {
        name: LabelledImages(images=part(4, 0).images, labels=np.zeros(4, np.int32))
        for name in ("train", "validation", "test")
    }
    task = task_of(data(class_names=("all",), **alone))

    assert list(task.evaluate(lambda name, batch: batch["noised"], "test")) == ["psnr"]
    assert list(task.baselines()) == ["noised images", "7×7 linear filter"]


def test_functions(task, model, call):
    images = scale_pixels(task.splits.test.images)
    states = np.asarray(
        nnx.jit(lambda model: model.glom(jnp.asarray(images), return_all=True))(model)
    )  # t b n l d

    np.testing.assert_allclose(call("states", {"images": images}), states.swapaxes(0, 1), atol=1e-6)
    _, height, width, _ = images.shape
    grid = probe_grid(height, width, task.config.patch_size)
    top = rearrange(states[3, :, :, -1], "b (x i y j) d -> b x i y j d", **grid)
    np.testing.assert_allclose(
        call("features", {"images": images}), top.mean(axis=(2, 4)).reshape(len(images), -1), atol=1e-6
    )
    assert call("clean", {"noised": images}).shape == images.shape


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(32, 32, (4, 2, 4, 2)), (28, 12, (1, 7, 3, 1)), (56, 24, (2, 7, 3, 2)), (4, 8, (1, 1, 2, 1))],
)
def test_probe_grid(height, width, expected):
    assert tuple(probe_grid(height, width, 4).values()) == expected


def test_samples(task, call):
    samples = task.samples(call)

    assert [sample.title for sample in samples] == [
        "Training inputs",
        "Reconstructions",
        *["Islands of agreement"] * 2,
    ]
    for sample in samples:
        assert sample.caption
        sample.figure.canvas.draw()
    titles = [axes.get_title() for axes in samples[2].figure.axes]
    assert len(titles) == 2 * (1 + 5), "two levels; the image and five states"
    assert [title.split("\n")[0] for title in titles[:6]] == ["level 2", *(f"step {i}" for i in range(5))]
    assert titles[6] == "level 1"


def test_export(task, model):
    exported = task.export(model)
    beside = exported.decoder

    assert type(exported.model) is Glom
    assert exported.preprocessing.images.channels == 3
    assert set(beside) == {"decoder.kernel", "decoder.bias"}
    np.testing.assert_array_equal(beside["decoder.kernel"], model.decoder.kernel[...])
    assert beside["decoder.kernel"].shape == (8, 48)
    assert isinstance(beside["decoder.bias"], np.ndarray)


def test_description_is_json(task):
    described = json.loads(json.dumps(task.describe()))

    assert described["noise"] == 0.5
    assert described["shift"] == 0
    assert described["classes"] == ["dark", "bright"]
    assert described["train"] == 12


EMPTY = LabelledImages(images=np.zeros((0, 8, 8, 3), np.uint8), labels=np.zeros(0, np.int32))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"train": EMPTY}, {}, r"every split must hold images; got none in train of blocks"),
        ({}, {"noise": 0}, r"noise must be a finite number > 0; got noise=0"),
        ({}, {"noise": float("nan")}, r"noise must be a finite number > 0; got noise=nan"),
        ({}, {"shift": 8}, r"shift must be smaller than the images' sides, \(8, 8\); got shift=8"),
        (
            {},
            {"config": GlomConfig(dim=8, levels=2, image_size=9, patch_size=3)},
            r"image height must be a multiple of patch_size; got image height=8, patch_size=3",
        ),
    ],
)
def test_wrong_arguments(changes, options, message):
    with pytest.raises(ValueError, match=message):
        task_of(data(**changes), **options)
