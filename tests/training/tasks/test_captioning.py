"""Captioning and retrieval: the loss, the metrics, the figures, and wrong data."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmodels.data.datasets import CaptionedImages, CaptionedSplits
from jaxmodels.data.tokens import BOS_ID, PAD_ID, encode
from jaxmodels.models.mammut import MaMMUT, MaMMUTConfig
from jaxmodels.models.simple_vit import SimpleViTConfig
from jaxmodels.training.draws import Draws
from jaxmodels.training.tasks import captioning
from jaxmodels.training.tasks.captioning import Captioning
from jaxmodels.training.tasks.evaluation import EVALUATION_BATCH
from jaxmodels.training.tasks.figures.captions import caption_figure, retrieval_figure
from tests.training.small_tasks import inputs_of


SIZES: dict[str, Any] = {
    "dim": 8,
    "num_tokens": 258,
    "depth": 1,
    "dim_latents": 4,
    "num_img_queries": 2,
    "dim_head": 4,
    "heads": 2,
    "caption_loss_weight": 2.0,
    "contrastive_loss_weight": 0.5,
}
CONFIG = MaMMUTConfig(**SIZES)
ENCODER = SimpleViTConfig(
    image_size=8,
    patch_size=4,
    num_classes=1,
    dim=8,
    depth=1,
    heads=1,
    mlp_dim=8,
    dim_head=4,
    patch_dropout=0.5,
)
CONTEXT = 8


def part(seed: int, *captions: str) -> CaptionedImages:
    images = np.random.default_rng(seed).integers(0, 256, (len(captions), 8, 8, 3), np.uint8)
    return CaptionedImages(images=images, captions=captions)


SPLITS = CaptionedSplits(
    source="noise",
    train=part(0, "ant", "bee", "a  cow\n", "dog", "elk", "fox"),
    validation=part(1, "gnu", "hen"),
    test=part(2, "ant", "bee", "ibis", "elk", "bee"),
)


@pytest.fixture(scope="module")
def task() -> Captioning:
    return Captioning(CONFIG, ENCODER, SPLITS, context=CONTEXT, shift=1)


@pytest.fixture(scope="module")
def model(task) -> MaMMUT:
    return task.model(dtype=None, param_dtype=jnp.float32, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def forward(task) -> Callable:
    return jax.jit(lambda model, batch, key: task.forward(model, batch, nnx.Rngs(dropout=key)))


@pytest.fixture(scope="module")
def training(model) -> MaMMUT:
    """With patch dropout, so that the random choice has to be the same as well."""
    return nnx.view(model, deterministic=False)


def test_batch_holds_complete_captions_with_an_end(task) -> None:
    batch = inputs_of(task, [2, 0])
    assert batch["text"].tolist() == [
        [BOS_ID, *(byte + 1 for byte in b"a cow\n"), PAD_ID],
        [BOS_ID, *(byte + 1 for byte in b"ant\n"), *[PAD_ID] * 3],
    ]
    assert batch["images"].shape == (2, 8, 8, 3)
    assert batch["images"].dtype == np.float32
    assert -1 <= batch["images"].min() < -0.9 < 0.9 < batch["images"].max() <= 1


def test_images_are_shifted(task) -> None:
    original = SPLITS.train.images[3] / np.float32(127.5) - 1
    still = Captioning(CONFIG, ENCODER, SPLITS, context=CONTEXT, shift=0)
    np.testing.assert_allclose(inputs_of(still, [3])["images"][0], original, atol=1e-6)
    shifted = task.batch(np.full(20, 3), Draws(0, np.arange(20)))["images"]
    assert len({image.tobytes() for image in shifted}) > 4


def test_loss_is_the_published_one(task, training, forward) -> None:
    batch = inputs_of(task, [2, 0, 5, 4])
    key = jax.random.key(3)
    loss, metrics = task.loss(training, forward(training, batch, key))

    published = jax.jit(lambda model, text, images: model.loss(text, images, rngs=nnx.Rngs(dropout=key)))
    expected = published(training, batch["text"], batch["images"])
    np.testing.assert_allclose(loss, expected.total, rtol=1e-6)
    np.testing.assert_allclose(metrics["caption_loss"], expected.caption, rtol=1e-6)
    np.testing.assert_allclose(metrics["contrastive_loss"], expected.contrastive, rtol=1e-6)


def test_contrastive_loss_compares_all_parts_of_a_batch(task, model, forward) -> None:
    batch = inputs_of(task, [2, 0, 5, 4])
    key = jax.random.key(0)
    whole = forward(model, batch, key)
    parts = [
        forward(model, {name: value[half] for name, value in batch.items()}, key)
        for half in (slice(0, 2), slice(2, 4))
    ]
    joined = {name: jnp.concatenate([one[name] for one in parts]) for name in whole}

    loss, metrics = task.loss(model, joined)
    np.testing.assert_allclose(loss, task.loss(model, whole)[0], rtol=1e-5)
    means = np.mean([task.loss(model, one)[1]["contrastive_loss"] for one in parts])
    assert abs(means - metrics["contrastive_loss"]) > 0.1


def test_losses_are_float32_in_a_bfloat16_model(task) -> None:
    batch = inputs_of(task, [0, 1])

    def losses() -> Any:
        model = task.model(dtype=jnp.bfloat16, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
        outputs = task.forward(model, jax.tree.map(jnp.asarray, batch), None)
        return task.loss(model, outputs), outputs["loss_sum"]

    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(losses))} == {jnp.dtype(jnp.float32)}


class Scripted(nnx.Module):
    """Looks at the first pixel of an image, takes it for a number, and writes the script of that number."""

    def __init__(self, *scripts: str) -> None:
        self.scripts = jnp.asarray(encode(scripts, CONTEXT))

    def embed_image(self, images: jax.Array) -> tuple[None, jax.Array]:
        return None, jnp.rint((images[:, :1, 0, 0] + 1) * 127.5).astype(jnp.int32)

    def decode(self, text: jax.Array, context: jax.Array) -> jax.Array:
        """The next id of the script as long as the text follows it, else "?"."""
        script = self.scripts[context[:, 0]]  # b n
        follows = jnp.cumsum(text != script[:, : text.shape[1]], axis=1) == 0
        return jax.nn.one_hot(jnp.where(follows, script[:, 1:], 64), 258)


def make_images(*numbers: int) -> np.ndarray:
    return np.array([np.full((8, 8, 3), number) for number in numbers]).astype(np.float32) / 127.5 - 1


@pytest.mark.usefixtures("unchecked_types")
def test_captions_end_at_the_end_mark(task) -> None:
    caption = jax.jit(task.functions["caption"])
    ids = caption(Scripted("ox\nrest", "a cow\n", "toolong"), {"images": make_images(1, 0, 2)})
    assert ids.tolist() == encode(["a cow\n", "ox\n", "toolong"], CONTEXT).tolist()


def test_evaluation_of_a_perfect_model(task) -> None:
    """Latents that are the same for everything right, and the right captions."""
    test = task.splits.test
    numbers = {"ant": 0, "bee": 1, "ibis": 2, "elk": 3}
    asked = []

    def call(name: str, batch: Any) -> Any:
        asked.append((name, batch["images"].shape))
        rows = [
            next(i for i in range(5) if np.allclose(image, test.images[i] / 127.5 - 1, atol=1e-6))
            for image in batch["images"]
        ]
        if name == "caption":
            return encode([test.captions[row] + "\n" for row in rows], CONTEXT)
        latents = np.eye(4, dtype=np.float32)[[numbers[test.captions[row]] for row in rows]]
        counts = (batch["text"][:, 1:] != PAD_ID).sum(axis=1).astype(np.float32)
        return {
            "loss_sum": 2 * math.log(2) * counts,
            "targets": counts,
            "text_latents": latents,
            "image_latents": latents,
        }

    metrics = task.evaluate(call, "test")

    assert metrics.pop("caption_bits_per_byte") == pytest.approx(2)
    assert metrics.pop("caption_loss") == pytest.approx(2 * math.log(2))
    # Both bees are drawn differently, but a caption is right for either.
    assert metrics == {
        **{f"{way}_recall_at_{k}": 1.0 for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)},
        "exact_captions": 1.0,
    }
    assert {shape for _, shape in asked} == {(EVALUATION_BATCH, 8, 8, 3)}
    assert task.metric.name == "image_to_text_recall_at_5"


def test_loss_of_all_pairs_is_counted_once(task, model) -> None:
    """However the batches are filled up: the mean over the bytes of the five test captions."""
    outputs = jax.jit(task.functions["outputs"])
    metrics = task.evaluate(lambda name, batch: call_numpy(outputs, model, batch), "validation")
    text = encode([caption + "\n" for caption in SPLITS.validation.captions], CONTEXT)
    images = SPLITS.validation.images.astype(np.float32) / 127.5 - 1
    expected = jax.jit(MaMMUT.loss)(model, text, images).caption
    assert metrics["caption_loss"] == pytest.approx(float(expected), rel=1e-5)
    assert "exact_captions" not in metrics, "takes one pass per byte: not during training"


def call_numpy(function: Callable, model: Any, batch: Any) -> Any:
    return jax.tree.map(np.asarray, function(model, batch))


def test_baselines(task) -> None:
    baselines = task.baselines()
    assert list(baselines) == [
        "chance",
        "counts of bytes",
        "counts of bytes after the last 2",
        "counts of bytes after the last 6",
        "nearest training image",
    ]
    # Of five captions three are right once, and "bee" twice: (3 · 1/5 + 2 · 2/5) / 5.
    assert baselines["chance"]["image_to_text_recall_at_1"] == pytest.approx(0.28)
    assert baselines["chance"]["text_to_image_recall_at_5"] == 1.0
    assert baselines["counts of bytes"]["caption_bits_per_byte"] > 3


def test_nearest_image_finds_what_it_has_seen() -> None:
    seen = replace(SPLITS, test=SPLITS.train)
    nearest = Captioning(CONFIG, ENCODER, seen, context=CONTEXT, shift=0).baselines()[
        "nearest training image"
    ]
    assert set(nearest.values()) == {1.0}
    other = CaptionedImages(images=SPLITS.train.images, captions=("bee", "ant", "a cow", "dog", "elk", "fox"))
    mixed_up = replace(SPLITS, test=other)
    nearest = Captioning(CONFIG, ENCODER, mixed_up, context=CONTEXT, shift=0).baselines()[
        "nearest training image"
    ]
    assert nearest["exact_captions"] == pytest.approx(4 / 6)
    assert nearest["image_to_text_recall_at_1"] == pytest.approx(4 / 6)


def test_samples_are_figures(task, model, tmp_path) -> None:
    functions = {name: jax.jit(function) for name, function in task.functions.items()}
    samples = task.samples(lambda name, batch: call_numpy(functions[name], model, batch))
    assert [sample.title for sample in samples] == [
        "Training inputs",
        "Captions",
        "Images found for a caption",
    ]
    for sample in samples:
        sample.figure.savefig(tmp_path / "figure.png")  # no warning, whatever an untrained model writes


def test_figures_show_captions_as_they_are(tmp_path) -> None:
    """A dollar sign starts no formula, and what the font lacks is a dot, not a warning."""
    caption_figure(SPLITS.test.images[:1], ["$x"], [["a 猫 for $5"]]).savefig(tmp_path / "figure.png")
    figure = retrieval_figure(["$\ufffd"], SPLITS.test.images[None, :2], np.array([[True, False]]))
    figure.savefig(tmp_path / "figure.png")
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == ["$·"]


def test_description_is_json(task) -> None:
    described = json.loads(json.dumps(task.describe()))
    assert described["train"] == 6
    assert described["longest_caption"] == len("a cow")
    changed = replace(SPLITS, train=part(0, "ant", "bee", "a cow", "dog", "elf", "fox"))
    again = Captioning(CONFIG, ENCODER, changed, context=CONTEXT, shift=1).describe()
    assert again["checksum"] != described["checksum"]


@pytest.mark.parametrize(
    ("sizes", "arguments", "message"),
    [
        ({"num_tokens": 257}, {}, r"num_tokens must be at least 258: .*; got num_tokens=257"),
        ({"pad_id": -1}, {}, r"pad_id must be 0, the padding of byte ids; got pad_id=-1"),
        (
            {"image_dim": 12},
            {},
            r"image_dim \(dim, if None\) must be the encoder's dim=8; got image_dim=12, dim=8",
        ),
        ({"dim": 12}, {}, r"must be the encoder's dim=8; got image_dim=None, dim=12"),
        (
            {},
            {"context": 6},
            r"context must be at least 7, .* two marks; got context=6 and the caption 'a cow' of noise; raise",
        ),
        ({}, {"context": 1}, r"context must be an integer ≥ 2; got context=1"),
        ({}, {"shift": -1}, r"shift must be an integer ≥ 0; got shift=-1"),
        ({}, {"shift": 8}, r"shift must be smaller than the images' sides, \(8, 8\); got shift=8"),
        ({}, {"zoom": True}, r"zoom must be a number in \[0, 1\); got zoom=True"),
        ({}, {"recolor": 2}, r"recolor must be a number in \[0, 1\); got recolor=2"),
        (
            {},
            {"splits": replace(SPLITS, validation=part(1))},
            r"every split must hold images; got none in validation of noise",
        ),
        (
            {},
            {
                "splits": replace(
                    SPLITS, test=CaptionedImages(images=np.zeros((1, 8, 4, 3), np.uint8), captions=("x",))
                )
            },
            r"all images must have one shape; got \(8, 4, 3\) in test, \(8, 8, 3\) in train of noise",
        ),
        (
            {},
            {"encoder": replace(ENCODER, image_size=9, patch_size=3)},
            r"image height must be a multiple of the encoder's patch height; got image height=8, .*=3",
        ),
    ],
)
def test_wrong_arguments(sizes, arguments, message) -> None:
    given = {"encoder": ENCODER, "splits": SPLITS, "context": CONTEXT, "shift": 1} | arguments
    with pytest.raises(ValueError, match=message):
        Captioning(MaMMUTConfig(**SIZES | sizes), **given)


def test_grey_images_need_no_other_configuration() -> None:
    grey = replace(
        SPLITS,
        **{
            name: replace(getattr(SPLITS, name), images=getattr(SPLITS, name).images[..., :1])
            for name in ("train", "validation", "test")
        },
    )
    task = Captioning(CONFIG, ENCODER, grey, context=CONTEXT, shift=1)
    model = jax.eval_shape(lambda: task.model(dtype=None, param_dtype=jnp.float32, rngs=nnx.Rngs(0)))
    assert model.img_encoder.config.channels == 1
    assert captioning.evenly(10, 4).tolist() == [0, 3, 6, 9]
