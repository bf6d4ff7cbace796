"""Language modelling: the next byte of a text, in bits per byte.

The ids are the bytes themselves, so that the results can be compared with those of compressors.

* Running text is cut into stretches of max_seq_len bytes. A training example is a window of max_seq_len + 1 bytes
  that begins at a random place of its stretch. Windows of held-out text overlap by one byte, so that every byte but
  the very first is predicted once.
* Records (`splits.row`), such as images, are examples by themselves. A zero byte is put before each, and every byte
  of the record is predicted.

Shapes: b windows, n = max_seq_len, p bytes of a prompt, m new bytes.
"""

import math
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int, Integer, UInt8
from matplotlib.figure import Figure
from numpy.lib.stride_tricks import sliding_window_view

from jaxmodels.data.datasets import TextSplits
from jaxmodels.data.preprocessing import Preprocessing, TextPreprocessing
from jaxmodels.generation import sample
from jaxmodels.losses import cross_entropy
from jaxmodels.models.hourglass import HourglassTransformerLM, pad
from jaxmodels.models.hourglass_config import HourglassTransformerLMConfig
from jaxmodels.training.draws import Draws
from jaxmodels.training.task import Batch, Call, Exported, Metric, Outputs, Sample, Split, Unit
from jaxmodels.training.tasks.baselines.bytes import entropy_bits, gzip_bits, xz_bits
from jaxmodels.training.tasks.checksum import data_checksum
from jaxmodels.training.tasks.figures.images import show


PADDING = -1  # after the end of a text; never a target
START = 0  # the byte before a record
WINDOWS_AT_ONCE = 16  # in evaluation

PROMPTS = 3
LONGEST_PROMPT = 160  # bytes
LONGEST_CONTINUATION = 480  # bytes
TEMPERATURE = 0.8
SHARE_DRAWN_FROM = 0.1  # of the vocabulary, the likeliest; the default of `generate`
LINE_LENGTH = 92  # characters


class LanguageModelling:
    """The Hourglass language model and the bytes of a text.

    Args:
      config: the model's configuration, which must be causal.
      splits: the text.
      validation_windows: the evenly spaced windows of the validation text that are looked at during training;
        of the test text every byte is predicted.

    Raises:
      ValueError: model and text do not fit, or the text is too short.
    """

    name = "language"
    metric = Metric(name="bits_per_byte", better="lower")

    def __init__(
        self, config: HourglassTransformerLMConfig, splits: TextSplits, *, validation_windows: int = 64
    ) -> None:
        require_fit(config, splits)
        self.config = config
        self.splits = splits
        self.validation_windows = validation_windows
        self.train = np.frombuffer(splits.train, np.uint8)
        self.examples = (
            len(splits.train) // splits.row if splits.row else (len(self.train) - 1) // self.length
        )
        self.functions: Mapping[str, Callable[[Any, Batch], Any]] = {
            "losses": lambda model, batch: byte_losses(model, batch["tokens"]),
            "generate": self._generate,
        }

    @property
    def unit(self) -> Unit:
        """Every byte that is predicted."""
        return Unit("tokens", self.length)

    @property
    def length(self) -> int:
        """Bytes that are predicted in one window."""
        return self.config.max_seq_len

    def model(
        self, *, dtype: DTypeLike | None, param_dtype: DTypeLike, rngs: nnx.Rngs
    ) -> HourglassTransformerLM:
        return HourglassTransformerLM(self.config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def batch(self, indices: Int[np.ndarray, " b"], draws: Draws) -> dict[str, np.ndarray]:
        """`tokens` (b, n + 1), bytes: no window of the training text needs padding."""
        if self.splits.row:
            return {"tokens": records(self.train, indices, self.splits.row).astype(np.uint8)}
        offsets = draws.integers(0, self.length)
        starts = np.minimum(indices * self.length + offsets, len(self.train) - self.length - 1)
        return {"tokens": sliding_window_view(self.train, self.length + 1)[starts]}

    def inputs(self, batch: Batch) -> Batch:
        """`tokens` (b, n + 1), int32."""
        return {"tokens": batch["tokens"].astype(jnp.int32)}

    def forward(self, model: HourglassTransformerLM, batch: Batch, rngs: nnx.Rngs | None) -> Outputs:
        """Of every window the sum of the losses, and how many bytes were predicted."""
        losses = byte_losses(model, batch["tokens"])
        return {
            "loss_sum": jnp.sum(losses, axis=1),
            "targets": jnp.sum(batch["tokens"][:, 1:] != PADDING, axis=1).astype(losses.dtype),
        }

    def loss(self, model: Any, outputs: Outputs) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Nats per byte: `next_token_loss(model, tokens, pad_value=-1)`."""
        loss = jnp.sum(outputs["loss_sum"]) / jnp.sum(outputs["targets"])
        return loss, {"bits_per_byte": loss / math.log(2)}

    def evaluate(self, call: Call, split: Split) -> dict[str, float]:
        """Bits per byte, and the same in nats as `loss`."""
        text = np.frombuffer(getattr(self.splits, split), np.uint8)
        row = self.splits.row
        count = len(text) // row if row else -(-(len(text) - 1) // self.length)
        numbers = np.arange(count)
        if split == "validation" and count > self.validation_windows:
            numbers = np.linspace(0, count - 1, self.validation_windows).round().astype(int)
        total, targets = 0.0, 0
        for first in range(0, len(numbers), WINDOWS_AT_ONCE):
            some = numbers[first : first + WINDOWS_AT_ONCE]
            tokens = records(text, some, row) if row else windows(text, some * self.length, self.length)
            missing = WINDOWS_AT_ONCE - len(tokens)
            tokens = np.pad(tokens, ((0, missing), (0, 0)), constant_values=PADDING)
            total += float(call("losses", {"tokens": tokens}).sum(dtype=np.float64))
            targets += int((tokens[:, 1:] != PADDING).sum())
        loss = total / targets
        return {"bits_per_byte": loss / math.log(2), "loss": loss}

    def baselines(self) -> dict[str, dict[str, float]]:
        test, train = self.splits.test, self.splits.train
        bits = {
            "frequencies of the bytes": entropy_bits(test),
            "gzip -9": gzip_bits(test),
            "xz -9e": xz_bits(test),
            "xz -9e after the training text": xz_bits(test, after=train),
        }
        return {name: {"bits_per_byte": value, "loss": value * math.log(2)} for name, value in bits.items()}

    def samples(self, call: Call) -> list[Sample]:
        """Continuations of beginnings that are taken from the test data."""
        row = self.splits.row
        chosen = self._chosen_records() if row else None
        prompts = self._text_prompts() if chosen is None else chosen[:, : 1 + (chosen.shape[1] - 1) // 2]
        drawn = call("generate", {"prompt": prompts, "seed": np.arange(len(prompts), dtype=np.int32)})
        how = f"drawn at temperature {TEMPERATURE} from the {self._candidates} likeliest bytes"
        shape = image_shape(row)
        if chosen is not None and shape is not None:
            figure = completion_figure(chosen[:, 1:], drawn, shape)
            caption = f"Test images, what of them was given, and what the model made of it, {how}."
            return [Sample(title="Completed images", caption=caption, figure=figure)]
        text = "\n\n\n".join(shown_continuation(*texts) for texts in zip(prompts, drawn, strict=True))
        caption = f"The lines behind bars are from the test text; the model wrote what follows, byte by byte, {how}."
        return [Sample(title="Generated text", caption=caption, text=text)]

    def export(self, model: HourglassTransformerLM) -> Exported:
        """The model; ids are the bytes of a text. Records are no texts."""
        text = Preprocessing(text=TextPreprocessing()) if self.splits.row is None else None
        return Exported(model=model, preprocessing=text)

    def describe(self) -> dict[str, Any]:
        splits = self.splits
        described: dict[str, Any] = {
            "source": splits.source,
            "train_bytes": len(splits.train),
            "validation_bytes": len(splits.validation),
            "test_bytes": len(splits.test),
            "checksum": data_checksum(splits),
        }
        if splits.row:
            described["record_bytes"] = splits.row
        if splits.skipped:
            described["skipped"] = list(splits.skipped)
        return described

    @property
    def _candidates(self) -> int:
        return max(1, int(SHARE_DRAWN_FROM * self.config.num_tokens))

    def _generate(self, model: HourglassTransformerLM, batch: Batch) -> Int[Array, "b m"]:
        """Bytes after each `prompt` (b, p), drawn with its own `seed` (b,): no row depends on its neighbours."""
        p = batch["prompt"].shape[1]
        new = self.splits.row - (p - 1) if self.splits.row else LONGEST_CONTINUATION

        def one(prompt: Int[Array, " p"], seed: Int[Array, ""]) -> Int[Array, " m"]:
            window = pad(prompt[None], 0, self.length - p)
            key = jax.random.key(seed)
            _, drawn = sample(
                model, window, p, new, None, TEMPERATURE, 0, key, k=self._candidates, capacity=new
            )
            return drawn[0]

        return jax.vmap(one)(batch["prompt"], batch["seed"])

    def _chosen_records(self) -> Int[np.ndarray, "b n"]:
        """Records from all over the test data."""
        data, row = np.frombuffer(self.splits.test, np.uint8), self.splits.row or 1
        return records(data, np.linspace(0, len(data) // row - 1, PROMPTS).round().astype(int), row)

    def _text_prompts(self) -> Int[np.ndarray, "b p"]:
        """Pieces from all over the test text, each up to the end of a word."""
        text = np.frombuffer(self.splits.test, np.uint8)
        p = max(1, min(LONGEST_PROMPT, self.length // 2, len(text) // 2))
        places = np.linspace(p, len(text), PROMPTS + 2)[1:-1].astype(int)
        ends = [max(p, self.splits.test.rfind(b" ", 0, place)) for place in places]
        return np.stack([text[end - p : end] for end in ends]).astype(np.int32)


def require_fit(config: HourglassTransformerLMConfig, splits: TextSplits) -> None:
    """ValueError unless the model can be trained on the text."""
    if not config.causal:
        raise ValueError(
            "causal must be True: the model would see the bytes it is to predict; got causal=False"
        )
    texts = {"training": splits.train, "validation": splits.validation, "test": splits.test}
    if splits.row is None:
        for name, text in texts.items():
            least = config.max_seq_len + 1 if name == "training" else 2
            if len(text) < least:
                raise ValueError(
                    f"the {name} text must have at least {least} bytes with max_seq_len={config.max_seq_len}; "
                    f"got {len(text)} bytes from {splits.source!r}; give more text"
                    + (" or lower max_seq_len" if name == "training" else "")
                )
    else:
        if config.max_seq_len != splits.row:
            raise ValueError(
                f"max_seq_len must be the bytes of one record, {splits.row}; got max_seq_len={config.max_seq_len}"
            )
        for name, text in texts.items():
            if len(text) == 0 or len(text) % splits.row:
                raise ValueError(
                    f"the {name} data must be one or more whole records of {splits.row} bytes; "
                    f"got {len(text)} bytes from {splits.source!r}"
                )
    largest = max(np.frombuffer(text, np.uint8).max() for text in texts.values())
    if config.num_tokens <= largest:
        raise ValueError(
            f"num_tokens must be above the largest byte of the text, {largest}; got num_tokens={config.num_tokens}; "
            "256 fits any text"
        )


def byte_losses(model: HourglassTransformerLM, tokens: Int[Array, "b n"]) -> Float[Array, "b n-1"]:
    """Cross-entropy of every byte after the first, in nats; 0 where there is padding."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    # Padding follows all that counts, so a causal model does not see it; any id will do.
    return cross_entropy(model(jnp.maximum(inputs, 0)), targets, ignored=PADDING)


def windows(
    text: UInt8[np.ndarray, " bytes"], starts: Int[np.ndarray, " b"], length: int
) -> Int[np.ndarray, "b {length}+1"]:
    """`length` + 1 bytes from each start on, padded after the end of the text."""
    positions = starts[:, None] + np.arange(length + 1)
    inside = positions < len(text)
    return np.where(inside, text[np.where(inside, positions, 0)].astype(np.int32), PADDING)


def records(
    data: UInt8[np.ndarray, " bytes"], numbers: Int[np.ndarray, " b"], row: int
) -> Int[np.ndarray, "b {row}+1"]:
    """The records of these numbers, each after a `START`."""
    chosen = rearrange(data, "(n row) -> n row", row=row)[numbers].astype(np.int32)
    return np.pad(chosen, ((0, 0), (1, 0)), constant_values=START)


def shown_continuation(prompt: Integer[np.ndarray, " p"], drawn: Integer[np.ndarray, " m"]) -> str:
    """The prompt behind bars and what was drawn after it, in lines of readable length."""
    given, made = (_in_lines(bytes(ids.astype(np.uint8)).decode(errors="replace")) for ids in (prompt, drawn))
    return textwrap.indent(f"…{given}", "│ ", lambda line: True) + f"\n{made} …"


def _in_lines(text: str) -> str:
    # Before it has learned much, a model draws control characters.
    printable = ("".join(c if c.isprintable() else "·" for c in line) for line in text.split("\n"))
    return "\n".join(textwrap.fill(line.strip(), LINE_LENGTH) for line in printable)


def image_shape(row: int | None) -> tuple[int, int, int] | None:
    """Height, width and channels, if a record has as many bytes as a square image, in colour or grey."""
    for channels in (3, 1):
        side = math.isqrt((row or 0) // channels)
        if side and side * side * channels == row:
            return side, side, channels
    return None


def completion_figure(
    originals: Int[np.ndarray, "b row"], drawn: Int[np.ndarray, "b m"], shape: tuple[int, int, int]
) -> Figure:
    """A line for each image: the original, its beginning on grey, and the beginning with what was drawn."""
    given = originals[:, : originals.shape[1] - drawn.shape[1]]
    blank = np.full(drawn.shape, 225)
    columns = {
        "original": originals,
        "given": np.concatenate([given, blank], axis=1),
        "completed": np.concatenate([given, drawn], axis=1),
    }
    figure = Figure(figsize=(5.4, 1.8 * len(originals) + 0.3), layout="constrained")
    grid = figure.subplots(len(originals), len(columns), squeeze=False)
    for column, (name, images) in zip(grid.T, columns.items(), strict=True):
        column[0].set_title(name, fontsize=10)
        for axes, image in zip(column, images, strict=True):
            show(axes, image.reshape(shape).astype(np.uint8))
    return figure
