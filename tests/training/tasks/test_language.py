"""Language modelling: windows and records, the loss, bits per byte, and wrong data."""

import json
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmodels import HourglassTransformerLM, HourglassTransformerLMConfig
from jaxmodels.data.datasets import TextSplits
from jaxmodels.generation import next_token_loss
from jaxmodels.training.draws import Draws
from jaxmodels.training.tasks import language
from jaxmodels.training.tasks.language import LanguageModelling, shown_continuation
from tests.training.small_tasks import inputs_of


N = 12
SIZES: dict[str, Any] = {
    "num_tokens": 128,
    "dim": 8,
    "max_seq_len": N,
    "depth": (1, 1, 0),
    "shorten_factor": 2,
    "heads": 1,
    "dim_head": 8,
}
CONFIG = HourglassTransformerLMConfig(**SIZES)
ALPHABET = bytes(range(32, 127))
SPLITS = TextSplits(
    source="letters",
    train=ALPHABET,
    validation=ALPHABET[:64],
    test=b"to be or not to be that is the question",
)
# Six records of twelve bytes: images of two by two pixels.
RECORDS = TextSplits(
    source="images", train=bytes(range(72)), validation=bytes(12), test=bytes(range(72)), row=N
)


@pytest.fixture(scope="module")
def task() -> LanguageModelling:
    return LanguageModelling(CONFIG, SPLITS)


@pytest.fixture(scope="module")
def model(task) -> HourglassTransformerLM:
    return task.model(dtype=None, param_dtype=jnp.float32, rngs=nnx.Rngs(0))


def test_examples_are_windows_from_all_over_the_text(task) -> None:
    assert task.examples == (len(ALPHABET) - 1) // N
    starts = set()
    for seed in range(300):
        tokens = inputs_of(task, range(task.examples), seed)["tokens"]
        assert tokens.shape == (task.examples, N + 1)
        assert tokens.dtype == np.int32
        for index, window in enumerate(tokens):
            start = window[0] - ALPHABET[0]
            assert window.tolist() == list(ALPHABET[start : start + N + 1])
            assert index * N <= start < (index + 1) * N
            starts.add(int(start))
    assert starts == set(range(len(ALPHABET) - N))


def test_a_window_depends_on_its_own_position_only(task) -> None:
    indices = np.array([3, 1, 5])
    tokens = inputs_of(task, indices)["tokens"]
    assert np.array_equal(task.batch(indices[2:], Draws(0, np.array([2])))["tokens"], tokens[2:])
    assert not np.array_equal(inputs_of(task, indices, seed=1)["tokens"], tokens)


def test_records_are_complete_and_follow_a_start() -> None:
    task = LanguageModelling(CONFIG, RECORDS)
    assert task.examples == 6
    tokens = inputs_of(task, [4, 0])["tokens"]
    assert tokens.tolist() == [[0, *range(48, 60)], [0, *range(12)]]


@pytest.fixture(scope="module")
def forward(task) -> Callable:
    return jax.jit(lambda model, tokens: task.forward(model, {"tokens": tokens}, None))


def test_loss_is_the_published_one(task, model, forward) -> None:
    tokens = inputs_of(task, [0, 4, 2, 6])["tokens"].copy()
    tokens[1, 5:] = language.PADDING  # so that the windows do not count alike
    outputs = forward(model, tokens)
    loss, metrics = task.loss(model, outputs)

    expected = jax.jit(partial(next_token_loss, pad_value=language.PADDING))(model, tokens)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["bits_per_byte"], expected / math.log(2), rtol=1e-6)
    assert all(len(value) == 4 and value.dtype == jnp.float32 for value in outputs.values())


def test_outputs_of_parts_make_up_the_whole(task, model, forward) -> None:
    tokens = inputs_of(task, range(4))["tokens"].copy()
    tokens[:2, 7:] = language.PADDING  # the mean of the parts' means is another number
    parts = [forward(model, tokens[i : i + 2]) for i in (0, 2)]
    joined = {name: jnp.concatenate([part[name] for part in parts]) for name in parts[0]}
    whole = forward(model, tokens)
    np.testing.assert_allclose(task.loss(model, joined)[0], task.loss(model, whole)[0], rtol=1e-6)


def test_losses_are_float32_in_a_bfloat16_model(task) -> None:
    shapes = jax.eval_shape(
        lambda: task.forward(
            task.model(dtype=jnp.bfloat16, param_dtype=jnp.float32, rngs=nnx.Rngs(0)),
            {"tokens": jnp.zeros((2, N + 1), jnp.int32)},
            None,
        )
    )
    assert {value.dtype for value in shapes.values()} == {jnp.dtype(jnp.float32)}


class Listener:
    """Stands for a model with a loss of ln 2 everywhere, and notes what it was asked to predict."""

    def __init__(self) -> None:
        self.predicted: list[tuple[int, int]] = []  # (byte before, byte)
        self.shapes: set[tuple[int, ...]] = set()

    def __call__(self, name: str, batch: Any) -> np.ndarray:
        assert name == "losses"
        tokens = batch["tokens"]
        self.shapes.add(tokens.shape)
        for window in tokens:
            self.predicted += [(a, b) for a, b in pairwise(window) if b >= 0]
        return np.where(tokens[:, 1:] >= 0, math.log(2), 0)


@pytest.mark.parametrize("length", [2, N, N + 1, N + 2, 39])
def test_every_byte_but_the_first_is_predicted_once(length, monkeypatch) -> None:
    monkeypatch.setattr(language, "WINDOWS_AT_ONCE", 2)
    text = SPLITS.test[:length]
    task = LanguageModelling(CONFIG, TextSplits(source="", train=ALPHABET, validation=b"ab", test=text))
    listener = Listener()

    metrics = task.evaluate(listener, "test")

    assert listener.predicted == list(pairwise(text))
    assert listener.shapes == {(2, N + 1)}
    assert metrics == {"bits_per_byte": pytest.approx(1), "loss": pytest.approx(math.log(2))}


def test_every_byte_of_a_record_is_predicted() -> None:
    listener = Listener()
    LanguageModelling(CONFIG, RECORDS).evaluate(listener, "test")
    before = [0 if i % N == 0 else i - 1 for i in range(72)]
    assert listener.predicted == list(zip(before, range(72), strict=True))


def test_validation_looks_at_evenly_spaced_windows() -> None:
    task = LanguageModelling(CONFIG, SPLITS, validation_windows=3)
    listener = Listener()
    task.evaluate(listener, "validation")
    firsts = [before - ALPHABET[0] for before, _ in listener.predicted]
    assert sorted(set(firsts)) == [*range(0, 12), *range(24, 36), *range(60, 63)]  # windows 0, 2 and 5 of 6


def test_a_model_that_knows_nothing(task, model) -> None:
    blank = nnx.clone(model)
    blank.to_logits.kernel[...] = jnp.zeros_like(blank.to_logits.kernel[...])
    blank.to_logits.bias[...] = jnp.zeros_like(blank.to_logits.bias[...])
    losses = jax.jit(task.functions["losses"])
    call = lambda name, batch: np.asarray(losses(blank, batch))  # noqa: E731
    assert task.evaluate(call, "test")["bits_per_byte"] == pytest.approx(7, rel=1e-6)


def test_baselines(task) -> None:
    repeated = TextSplits(source="", train=SPLITS.test * 9, validation=b"ab", test=SPLITS.test)
    baselines = LanguageModelling(CONFIG, repeated).baselines()
    bits = {name: values["bits_per_byte"] for name, values in baselines.items()}
    assert list(bits) == [
        "frequencies of the bytes",
        "gzip -9",
        "xz -9e",
        "xz -9e after the training text",
    ]
    assert bits["xz -9e after the training text"] < 1 < bits["xz -9e"]
    assert all(
        values["loss"] == pytest.approx(values["bits_per_byte"] * math.log(2))
        for values in baselines.values()
    )


@pytest.fixture(scope="module")
def call(task, model) -> Callable:
    functions = {name: jax.jit(function) for name, function in task.functions.items()}
    return lambda name, batch: np.asarray(functions[name](model, batch))


def test_generated_rows_do_not_depend_on_their_neighbours(task, model, monkeypatch) -> None:
    monkeypatch.setattr(language, "LONGEST_CONTINUATION", 20)  # longer than the window
    generate = jax.jit(task.functions["generate"])
    prompts = np.array([[65, 66, 67], [68, 69, 70], [65, 66, 67]], np.int32)
    drawn = generate(model, {"prompt": prompts, "seed": np.array([5, 6, 7], np.int32)})
    turned = generate(model, {"prompt": prompts[::-1], "seed": np.array([5, 6, 7], np.int32)[::-1]})

    assert drawn.shape == (3, 20)
    assert np.array_equal(drawn, turned[::-1])
    assert not np.array_equal(drawn[0], drawn[2]), "the seed makes no difference"
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < CONFIG.num_tokens


class Reciting(nnx.Module):
    """Has learned the alphabet by heart: after every byte comes the next one."""

    config = CONFIG

    def features(self, tokens: jax.Array) -> jax.Array:
        return jax.nn.one_hot(tokens, CONFIG.num_tokens)

    def to_logits(self, x: jax.Array) -> jax.Array:
        return 50 * jnp.roll(x, 1, axis=-1)


@pytest.mark.usefixtures("unchecked_types")
def test_generated_bytes_follow_the_prompt(task, monkeypatch) -> None:
    monkeypatch.setattr(language, "LONGEST_CONTINUATION", 6)
    batch = {"prompt": jnp.array([[65, 66], [97, 98]]), "seed": jnp.array([0, 0])}
    drawn = jax.jit(task.functions["generate"])(Reciting(), batch)
    assert [bytes(row.tolist()) for row in np.asarray(drawn)] == [b"CDEFGH", b"cdefgh"]


def test_samples_continue_the_test_text(task, call) -> None:
    (sample,) = task.samples(call)
    given = [line for line in sample.text.splitlines() if line.startswith("│ ")]
    assert len(given) == language.PROMPTS
    for line in given:
        piece = line.removeprefix("│ …").encode()
        assert piece
        assert piece in SPLITS.test
        assert SPLITS.test[SPLITS.test.index(piece) + len(piece) :][:1] in (b" ", b"")
    assert sample.figure is None


def test_samples_of_records_are_images(model) -> None:
    task = LanguageModelling(CONFIG, RECORDS)
    generate = jax.jit(task.functions["generate"])
    (sample,) = task.samples(lambda name, batch: np.asarray(generate(model, batch)))
    assert sample.text is None
    rows = [axes.get_images()[0].get_array() for axes in sample.figure.axes]
    assert len(rows) == 3 * language.PROMPTS
    original, given, completed = rows[:3]
    assert original.ravel().tolist() == list(range(12))
    assert given.ravel().tolist() == [*range(6), *[225] * 6]
    assert completed.ravel().tolist()[:6] == list(range(6))


def test_shown_text_has_no_control_characters() -> None:
    shown = shown_continuation(
        np.frombuffer(b"fellow", np.uint8), np.frombuffer(b" citi\x00zens\n\xff", np.uint8)
    )
    assert shown == "│ …fellow\nciti·zens\n� …"


@pytest.mark.parametrize(
    ("row", "shape"), [(3072, (32, 32, 3)), (784, (28, 28, 1)), (12, (2, 2, 3)), (10, None), (None, None)]
)
def test_records_that_are_images(row, shape) -> None:
    assert language.image_shape(row) == shape


def test_description_is_json(task) -> None:
    described = json.loads(json.dumps(task.describe()))
    assert described["train_bytes"] == len(ALPHABET)
    changed = TextSplits(source="letters", train=ALPHABET[::-1], validation=b"ab", test=b"ab")
    assert LanguageModelling(CONFIG, changed).describe()["checksum"] != described["checksum"]
    assert LanguageModelling(CONFIG, RECORDS).describe()["record_bytes"] == N


@pytest.mark.parametrize(
    ("sizes", "texts", "message"),
    [
        ({"causal": False}, {}, r"causal must be True: .*; got causal=False"),
        (
            {},
            {"train": b"x" * N},
            r"the training text must have at least 13 bytes with max_seq_len=12; got 12 bytes from 'letters'; .*lower max_seq_len",
        ),
        ({}, {"test": b"x"}, r"the test text must have at least 2 bytes .*; got 1 bytes from 'letters'"),
        ({}, {"validation": b""}, r"the validation text must have at least 2 bytes .*; got 0 bytes"),
        (
            {},
            {"test": b"caf\xc3\xa9"},
            r"num_tokens must be above the largest byte of the text, 195; got num_tokens=128; 256 fits",
        ),
        ({}, {"row": 6}, r"max_seq_len must be the bytes of one record, 6; got max_seq_len=12"),
        (
            {},
            {"row": N, "train": bytes(12), "validation": bytes(24), "test": bytes(13)},
            r"the test data must be one or more whole records of 12 bytes; got 13 bytes from 'letters'",
        ),
    ],
)
def test_wrong_arguments(sizes, texts, message) -> None:
    given = {"train": SPLITS.train, "validation": SPLITS.validation, "test": SPLITS.test} | texts
    with pytest.raises(ValueError, match=message):
        LanguageModelling(
            HourglassTransformerLMConfig(**SIZES | sizes), TextSplits(source="letters", **given)
        )
