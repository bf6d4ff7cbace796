"""Classification: the loss, the metrics, the routing that the report shows, and wrong data."""

import json
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxmodels.data.datasets import LabelledImages, LabelledSplits
from jaxmodels.data.preprocessing import scale_pixels
from jaxmodels.models.colt5 import ConditionalRoutedViT, ConditionalRoutedViTConfig
from jaxmodels.models.scalable_vit import ScalableViT, ScalableViTConfig
from jaxmodels.training.draws import Draws
from jaxmodels.training.tasks.augmentation import shift_images
from jaxmodels.training.tasks.classification import Classification
from tests.training.small_tasks import inputs_of


SCALABLE = ScalableViTConfig(
    num_classes=7,
    dim=4,
    depth=(1,),
    heads=1,
    reduction_factor=1,
    iwsa_dim_key=2,
    iwsa_dim_value=2,
    ssa_dim_key=2,
    ssa_dim_value=2,
    dropout=0.5,
)
ROUTED = ConditionalRoutedViTConfig(
    image_size=64,
    patch_size=2,
    num_classes=7,
    dim=8,
    depth=2,
    attn_num_heavy_tokens_q=2,
    attn_num_heavy_tokens_kv=2,
    attn_heavy_dim_head=4,
    attn_heavy_heads=2,
    attn_light_dim_head=4,
    attn_light_heads=1,
    attn_light_window_size=2,
    ff_num_heavy_tokens=3,
    ff_heavy_mult=1,
    ff_light_mult=1,
)
NAMES = ("red", "green", "blue")


def part(n: int, seed: int, shape: tuple[int, int, int] = (8, 8, 3)) -> LabelledImages:
    """Noise; an image of class i is brighter in column i."""
    labels = (np.arange(n) % 3).astype(np.int32)
    images = np.random.default_rng(seed).integers(0, 100, (n, *shape), np.uint8)
    images[np.arange(n), :, labels] += 150
    return LabelledImages(images=images, labels=labels)


def data(**changes: Any) -> LabelledSplits:
    parts = {"train": part(12, 0), "validation": part(4, 1), "test": part(10, 2)}
    return LabelledSplits(**{"source": "noise", "class_names": NAMES, **parts, **changes})


def task_of(config: Any, splits: LabelledSplits | None = None, **changes: Any) -> Classification:
    options = {"shift": 1, "flip": False, "label_smoothing": 0.0} | changes
    return Classification(config, splits or data(), **options)


def fresh(task: Classification) -> Any:
    return task.model(dtype=None, param_dtype=jnp.float32, rngs=nnx.Rngs(0))


def caller(task: Classification, model: Any) -> Any:
    functions = {name: nnx.jit(function) for name, function in task.functions.items()}
    return lambda name, batch: jax.tree.map(np.asarray, functions[name](model, batch))


@pytest.fixture(scope="module")
def routed() -> tuple[Classification, ConditionalRoutedViT, Any]:
    task = task_of(ROUTED)
    model = fresh(task)
    return task, model, caller(task, model)


@pytest.fixture(scope="module")
def scalable() -> tuple[Classification, ScalableViT, Any]:
    task = task_of(SCALABLE)
    model = fresh(task)
    return task, model, caller(task, model)


@pytest.mark.parametrize("config", [SCALABLE, ROUTED])
def test_classes_and_channels_are_those_of_the_data(config):
    shape = (8, 12, 1)
    task = task_of(
        config, data(train=part(3, 0, shape), validation=part(3, 1, shape), test=part(3, 2, shape))
    )

    assert task.config.num_classes == 3
    assert task.config.channels == 1
    if config is ROUTED:
        assert task.config.image_size == (8, 12)
        assert task_of(config).config.image_size == 8
    unchanged = {"num_classes": 7, "channels": 3, **({"image_size": 64} if config is ROUTED else {})}
    assert replace(task.config, **unchanged) == config


def test_models_are_those_of_the_configuration(scalable, routed):
    assert type(scalable[1]) is ScalableViT
    assert type(routed[1]) is ConditionalRoutedViT
    for task, model, _ in (scalable, routed):
        assert model.config == task.config
        exported = task.export(model)
        assert exported.model is model
        assert exported.decoder is None
        assert exported.preprocessing.class_names == ("red", "green", "blue")


def test_batch():
    task = task_of(SCALABLE, shift=2, flip=True)
    indices = np.array([5, 3, 3, 11])

    batch = task.batch(indices, Draws(0, np.arange(4)))

    images = task.splits.train.images[indices]
    expected = shift_images(images, Draws(0, np.arange(4)), shift=2, flip=True)
    np.testing.assert_array_equal(batch["images"], expected)
    assert not np.array_equal(batch["images"][1], batch["images"][2]), "one example at two positions"
    np.testing.assert_array_equal(batch["labels"], task.splits.train.labels[indices])
    still = task_of(SCALABLE, shift=0)
    np.testing.assert_array_equal(still.batch(indices, Draws(0, np.arange(4)))["images"], images)
    inputs = inputs_of(still, indices)
    assert inputs["images"].dtype == np.float32
    np.testing.assert_allclose(inputs["images"], scale_pixels(images), rtol=0, atol=1.2e-7)
    assert (
        np.abs(inputs_of(task_of(SCALABLE, shift=0, recolor=0.5), indices)["images"] - inputs["images"]).max()
        > 0.1
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_loss_is_the_mean_cross_entropy(routed, smoothing):
    _, model, call = routed
    task = task_of(ROUTED, label_smoothing=smoothing)
    batch = jax.tree.map(jnp.asarray, inputs_of(task, range(12)))

    loss, metrics = nnx.jit(lambda model: task.loss(model, task.forward(model, batch, None)))(model)

    logits = call("logits", batch).astype(np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    targets = (1 - smoothing) * np.eye(3)[batch["labels"]] + smoothing / 3
    assert float(loss) == pytest.approx(-np.mean(np.sum(targets * log_probabilities, axis=1)), rel=1e-6)
    assert float(metrics["top1"]) == pytest.approx(np.mean(logits.argmax(axis=1) == batch["labels"]))


def test_outputs_belong_to_their_examples(scalable):
    task, model, _ = scalable
    batch = inputs_of(task, range(6))
    forward = nnx.jit(lambda model, batch: task.forward(model, batch, None))

    whole = forward(model, batch)
    parts = [forward(model, {name: x[i : i + 3] for name, x in batch.items()}) for i in (0, 3)]

    for name, value in whole.items():
        assert value.shape == (6,)
        np.testing.assert_allclose(value, np.concatenate([part[name] for part in parts]), atol=1e-6)


def test_dropout_acts_in_training_only(scalable):
    task, model, _ = scalable
    training = nnx.view(model, deterministic=False)
    batch = jax.tree.map(jnp.asarray, inputs_of(task, range(12)))

    @nnx.jit
    def loss(model: ScalableViT, key: jax.Array) -> jax.Array:
        return task.forward(model, batch, nnx.Rngs(dropout=key))["loss"].mean()

    keys = jax.random.key(0), jax.random.key(1)
    assert loss(training, keys[0]) != loss(training, keys[1])
    assert loss(model, keys[0]) == loss(model, keys[1])


def test_losses_of_half_precision_are_float32(routed):
    task = routed[0]
    model = task.model(dtype=jnp.bfloat16, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    batch = jax.tree.map(jnp.asarray, inputs_of(task, range(2)))

    assert jax.eval_shape(lambda: task.forward(model, batch, None)["loss"]).dtype == jnp.float32
    assert jax.eval_shape(lambda: task.functions["logits"](model, batch)).dtype == jnp.float32


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation(split):
    """A model that knows the class from the brightest column."""
    task = task_of(SCALABLE, label_smoothing=0.5)

    def call(name, batch):
        assert name == "logits"
        assert batch["images"].dtype == np.float32
        return 5 * (batch["images"].mean(axis=(1, 3))[:, :3] > 0).astype(np.float32)

    metrics = task.evaluate(call, split)

    expected = float(np.log(1 + 2 * np.exp(-5)))
    assert metrics == {"top1": 1.0, "top5": 1.0, "loss": pytest.approx(expected, rel=1e-5)}
    wrong = task.evaluate(lambda name, batch: np.roll(call(name, batch), 1, axis=1), split)
    assert wrong["top1"] == 0


def test_evaluation_runs_the_model(scalable):
    task, model, call = scalable
    logits = nnx.jit(type(model).__call__)(model, scale_pixels(task.splits.test.images))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, task.splits.test.labels)

    assert task.evaluate(call, "test")["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)


def test_routing_marks_the_selected_patches(routed):
    task, model, call = routed
    images = scale_pixels(task.splits.test.images)

    masks = call("routing", {"images": images})

    assert list(masks) == ["attention", "feed-forward"]
    selected = nnx.jit(lambda model: model.routing(jnp.asarray(images)))(model)
    for layer in range(2):
        queries, tokens = selected[3 * layer].indices, selected[3 * layer + 2].indices
        for i in range(len(images)):
            expected = np.zeros((4, 4), bool)
            for token in tokens[i, 0]:
                expected[token // 4, token % 4] = True
            np.testing.assert_array_equal(masks["feed-forward"][i, layer], expected)
            expected = np.zeros((4, 4), bool)
            for window in range(4):
                for token in queries[4 * i + window, 0]:
                    expected[2 * (window // 2) + token // 2, 2 * (window % 2) + token % 2] = True
            np.testing.assert_array_equal(masks["attention"][i, layer], expected)
    assert masks["feed-forward"].sum(axis=(2, 3)).min() == 3


def test_a_router_that_is_off_selects_all():
    task = task_of(replace(ROUTED, depth=1, ff_num_heavy_tokens=16))

    masks = caller(task, fresh(task))("routing", {"images": scale_pixels(task.splits.test.images)})

    assert masks["feed-forward"].all()
    assert not masks["attention"].all()


def test_samples(routed, scalable):
    titles = ["Training inputs", "Confusion matrix", "Predictions", "Routed patches"]
    for (task, _, call), expected in ((routed, titles), (scalable, titles[:3])):
        samples = task.samples(call)
        assert [sample.title for sample in samples] == expected
        for sample in samples:
            assert sample.caption
            sample.figure.canvas.draw()


def test_confusion_matrix_has_a_row_for_each_class():
    """A model whose answer is always the class after the right one."""
    task = task_of(SCALABLE)

    def call(name, batch):
        return np.roll(batch["images"].mean(axis=(1, 3))[:, :3], 1, axis=1)

    figure = task.samples(call)[1].figure

    cells = {text.get_position(): int(text.get_text()) for text in figure.axes[0].texts}
    assert cells == {(1, 0): 4, (2, 1): 3, (0, 2): 3}, "(column, row): count"


def test_baselines():
    results = task_of(SCALABLE).baselines()

    assert set(results) == {"majority", "5 nearest neighbours", "logistic regression"}
    assert results["majority"]["top1"] == 0.4
    assert results["logistic regression"]["top1"] == 1


def test_description_is_json():
    described = json.loads(
        json.dumps(task_of(SCALABLE, data(skipped=("a.png: no image",)), flip=True).describe())
    )

    assert len(described.pop("checksum")) == 32
    assert described == {
        "source": "noise",
        "train": 12,
        "validation": 4,
        "test": 10,
        "image_shape": [8, 8, 3],
        "skipped": 1,
        "classes": ["red", "green", "blue"],
        "shift": 1,
        "flip": True,
        "zoom": 0.0,
        "recolor": 0.0,
        "label_smoothing": 0.0,
    }


EMPTY = LabelledImages(images=np.zeros((0, 8, 8, 3), np.uint8), labels=np.zeros(0, np.int32))


@pytest.mark.parametrize(
    ("config", "changes", "options", "message"),
    [
        (
            SCALABLE,
            {"class_names": ("red",)},
            {},
            r"at least 2 classes; got \['red'\] in noise",
        ),
        (SCALABLE, {"test": EMPTY}, {}, r"every split must hold images; got none in test of noise"),
        (
            SCALABLE,
            {"validation": part(2, 0, (8, 9, 3))},
            {},
            r"one shape; got \(8, 9, 3\) in validation, \(8, 8, 3\) in train of noise",
        ),
        (SCALABLE, {}, {"shift": -1}, r"shift must be an integer ≥ 0; got shift=-1"),
        (
            SCALABLE,
            {},
            {"shift": 8},
            r"shift must be smaller than the images' sides, \(8, 8\); got shift=8",
        ),
        (SCALABLE, {}, {"zoom": 1.0}, r"zoom must be a number in \[0, 1\); got zoom=1\.0"),
        (SCALABLE, {}, {"recolor": -0.1}, r"recolor must be a number in \[0, 1\); got recolor=-0\.1"),
        (
            SCALABLE,
            {},
            {"label_smoothing": 1.0},
            r"label_smoothing must lie in \[0, 1\); got label_smoothing=1\.0",
        ),
        (
            replace(ROUTED, patch_size=8, attn_light_window_size=2),
            {},
            {},
            r"image_size height in patches must be a multiple of attn_light_window_size; got .*=1",
        ),
    ],
)
def test_wrong_arguments(config, changes, options, message):
    with pytest.raises(ValueError, match=message):
        task_of(config, data(**changes), **options)
