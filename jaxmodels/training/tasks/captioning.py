"""Captioning and retrieval: MaMMUT with a SimpleViT that encodes the images.

Texts are bytes (`jaxmodels.data.tokens`). Padding follows a caption, and the loss leaves padding out, so a decoder
would never learn where to stop. Therefore a line break ends every caption and is predicted like any other byte. No
caption contains one, because white space is reduced to single spaces.

Some images have the same pixels, and some captions are equal. In retrieval, a caption is right for an image if it is
the caption of that image or of one with the same pixels, and the other way round.

Shapes: b batch, n = context, v vocabulary, z latent width, i images, j captions.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int

from jaxmodels.checks import require_divisible, require_height_width, require_integer
from jaxmodels.data.datasets import CaptionedImages, CaptionedSplits
from jaxmodels.data.preprocessing import Preprocessing, TextPreprocessing, scale_pixels
from jaxmodels.data.readers.image_files import Resize
from jaxmodels.data.tokens import BOS_ID, NUM_TOKENS, PAD_ID, EncodedTexts, decode, encode
from jaxmodels.losses import contrastive_loss, cross_entropy
from jaxmodels.models.mammut import MaMMUT, MaMMUTConfig
from jaxmodels.models.simple_vit import SimpleViT, SimpleViTConfig
from jaxmodels.training.draws import Draws
from jaxmodels.training.experiment import require_share
from jaxmodels.training.task import Batch, Call, Exported, Metric, Outputs, Sample, Split, Unit
from jaxmodels.training.tasks.augmentation import draw_recoloring, require_shift, shift_images
from jaxmodels.training.tasks.baselines.bytes import ByteCounts
from jaxmodels.training.tasks.checksum import data_checksum
from jaxmodels.training.tasks.evaluation import (
    call_in_batches,
    image_preprocessing,
    require_image_splits,
    training_inputs,
)
from jaxmodels.training.tasks.figures.captions import caption_figure, retrieval_figure
from jaxmodels.training.tasks.inputs import image_inputs
from jaxmodels.training.tasks.retrieval import chance, pixel_neighbours, recalls, right_answers


END = "\n"  # after every caption
CAPTIONED = (
    256  # test images, evenly spaced, that get a whole caption: each byte takes one pass of the decoder
)
CAPTIONS_SHOWN = 18  # of them, shown in the report
SEARCHED, FOUND = 8, 6  # captions in the report, and images found for each of them
ORDERS = (0, 2, 6)  # how many bytes the byte counts look back
MOST_COUNTED = 50_000  # captions


class Captioning:
    """MaMMUT writes the caption of an image byte by byte, and finds images and captions by each other.

    Args:
      config: sizes of MaMMUT.
      encoder: sizes of the SimpleViT; its number of channels becomes that of the images.
      splits: the data.
      context: ids of the longest caption: its bytes, one for the beginning and one for the end.
      shift: training images are shifted by up to this many pixels, at random.
      zoom, recolor: enlarge or reduce training images, and change their channels, by up to this share, at random.
      resize: how the images of `splits` were resized; saved with the model.

    Raises:
      ValueError: configurations, images and captions do not fit each other.
    """

    name = "captioning"
    unit = Unit("images")
    metric = Metric(name="image_to_text_recall_at_5", better="higher")

    def __init__(
        self,
        config: MaMMUTConfig,
        encoder: SimpleViTConfig,
        splits: CaptionedSplits,
        *,
        context: int,
        shift: int,
        zoom: float = 0.0,
        recolor: float = 0.0,
        resize: Resize = "bilinear",
    ) -> None:
        require_fit(config, encoder)
        require_image_splits(splits)
        require_patches(encoder, splits.train.images.shape[1:])
        self.config = config
        self.encoder = replace(encoder, channels=splits.train.images.shape[-1])
        self.splits = CaptionedSplits(
            source=splits.source,
            train=with_single_spaces(splits.train),
            validation=with_single_spaces(splits.validation),
            test=with_single_spaces(splits.test),
            skipped=splits.skipped,
        )
        require_context(self.splits, context)
        self.context, self.resize = context, resize
        self.shift = require_shift(shift, splits.train.images.shape[1:3])
        self.zoom, self.recolor = require_share("zoom", zoom), require_share("recolor", recolor)
        self.examples = len(splits.train)
        self.train_texts = EncodedTexts([caption + END for caption in self.splits.train.captions])
        self.functions: Mapping[str, Callable[[Any, Batch], Any]] = {
            "outputs": lambda model, batch: self.forward(model, batch, None),
            "caption": self._caption,
        }

    def model(self, *, dtype: DTypeLike | None, param_dtype: DTypeLike, rngs: nnx.Rngs) -> MaMMUT:
        """MaMMUT with its encoder as one module."""
        encoder = SimpleViT(self.encoder, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        return MaMMUT(self.config, encoder, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def batch(self, indices: Int[np.ndarray, " b"], draws: Draws) -> dict[str, np.ndarray]:
        """{"images": (b, height, width, c) bytes, "text": (b, context) uint16}, and {"recoloring": (b, 2, c)}.

        The last is there with `recolor` only.
        """
        images = self.splits.train.images[indices]
        images = shift_images(images, draws, shift=self.shift, zoom=self.zoom)
        batch = {"images": images, "text": self.train_texts.rows(indices, self.context)}
        if self.recolor:
            batch["recoloring"] = draw_recoloring(draws, channels=images.shape[-1], strength=self.recolor)
        return batch

    def inputs(self, batch: Batch) -> Batch:
        """{"images": (b, height, width, c) float32, "text": (b, context) int32}."""
        return {"images": image_inputs(batch), "text": batch["text"].astype(jnp.int32)}

    def forward(self, model: MaMMUT, batch: Batch, rngs: nnx.Rngs | None) -> Outputs:
        """Of every pair the sum of the caption's losses, how many bytes were predicted, and both latents."""
        text, labels = batch["text"][:, :-1], batch["text"][:, 1:]
        image_embeds, context = model.embed_image(batch["images"], rngs=rngs)
        text_embeds, _ = model.embed_text(text)
        losses = cross_entropy(model.decode(text, context), labels, ignored=PAD_ID)
        return {
            "loss_sum": jnp.sum(losses, axis=1),
            "targets": jnp.sum(labels != PAD_ID, axis=1, dtype=losses.dtype),
            "text_latents": model.text_to_latents(text_embeds),
            "image_latents": model.img_to_latents(image_embeds),
        }

    def loss(self, model: MaMMUT, outputs: Outputs) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """`MaMMUT.loss` of the batch: every caption is compared with every image of it."""
        caption = jnp.sum(outputs["loss_sum"]) / jnp.sum(outputs["targets"])
        contrastive = contrastive_loss(
            outputs["text_latents"], outputs["image_latents"], model.temperature[...]
        )
        config = self.config
        total = config.caption_loss_weight * caption + config.contrastive_loss_weight * contrastive
        return total, {"caption_loss": caption, "contrastive_loss": contrastive}

    def evaluate(self, call: Call, split: Split) -> dict[str, float]:
        """Recall both ways, the caption loss per byte, and on the test data how many captions are exactly right.

        The end of a caption counts as one of its bytes. `caption_loss` is in nats.
        """
        part = getattr(self.splits, split)
        outputs = self._outputs(call, part)
        texts, images = outputs["text_latents"], outputs["image_latents"]
        right_captions, right_images = right_answers(part.images, part.captions)
        loss = float(outputs["loss_sum"].sum(dtype=np.float64) / outputs["targets"].sum(dtype=np.float64))
        metrics = {
            **_named("image_to_text", recalls(lambda rows: images[rows] @ texts.T, right_captions)),
            **_named("text_to_image", recalls(lambda rows: texts[rows] @ images.T, right_images)),
            "caption_loss": loss,
            "caption_bits_per_byte": loss / math.log(2),
        }
        if split == "test":
            chosen = evenly(len(part), CAPTIONED)
            metrics["exact_captions"] = self._exact(self._captions(call, part, chosen), chosen)
        return metrics

    def baselines(self) -> dict[str, dict[str, float]]:
        """Chance, byte counts that do not see the image, and the nearest training image."""
        train, test = self.splits.train, self.splits.test
        right_captions, right_images = right_answers(test.images, test.captions)
        results = {
            "chance": {
                **_named("image_to_text", chance(right_captions, len(test))),
                **_named("text_to_image", chance(right_images, len(test))),
            }
        }
        known, unknown = ([(caption + END).encode() for caption in part.captions] for part in (train, test))
        for order in ORDERS:
            bits = ByteCounts(order, known[:MOST_COUNTED]).bits(unknown)
            name = f"counts of bytes after the last {order}" if order else "counts of bytes"
            results[name] = {"caption_loss": bits * math.log(2), "caption_bits_per_byte": bits}
        nearest, scores = pixel_neighbours(train, test.images, test.captions)
        chosen = evenly(len(test), CAPTIONED)
        results["nearest training image"] = {
            **_named("image_to_text", recalls(lambda rows: scores[rows], right_captions)),
            **_named("text_to_image", recalls(lambda rows: scores.T[rows], right_images)),
            "exact_captions": self._exact([train.captions[number] for number in nearest[chosen]], chosen),
        }
        return results

    def samples(self, call: Call) -> list[Sample]:
        """Captions that the model wrote, and images that it found."""
        test = self.splits.test
        right_captions, right_images = right_answers(test.images, test.captions)
        shown = evenly(len(test), CAPTIONS_SHOWN)
        made = self._captions(call, test, shown)
        right = [[test.captions[number] for number in right_captions[i]] for i in shown]

        outputs = self._outputs(call, test)
        asked = evenly(len(test), SEARCHED)
        found = np.argsort(-outputs["text_latents"][asked] @ outputs["image_latents"].T, axis=1)[:, :FOUND]
        hits = np.array([np.isin(row, right_images[i]) for i, row in zip(asked, found, strict=True)])
        return [
            training_inputs(self, ("images",)),
            Sample(
                title="Captions",
                caption="Above each test image what the model wrote, always the likeliest byte; "
                "below it, where that is wrong, the right caption.",
                figure=caption_figure(test.images[shown], made, right),
            ),
            Sample(
                title="Images found for a caption",
                caption=f"The closest of {len(test)} test images, the best first; right ones are framed.",
                figure=retrieval_figure([test.captions[i] for i in asked], test.images[found], hits),
            ),
        ]

    def export(self, model: MaMMUT) -> Exported:
        """The model, with what makes its images and its texts."""
        text = TextPreprocessing(first_id=1, start_id=BOS_ID, end=END, pad_id=PAD_ID, length=self.context)
        images = image_preprocessing(self.splits.train.images.shape, self.resize)
        return Exported(model=model, preprocessing=Preprocessing(images=images, text=text))

    def describe(self) -> dict[str, Any]:
        splits = self.splits
        return {
            "source": splits.source,
            "train": len(splits.train),
            "validation": len(splits.validation),
            "test": len(splits.test),
            "image_shape": list(splits.train.images.shape[1:]),
            "longest_caption": max(len(caption.encode()) for caption in splits.train.captions),
            "context": self.context,
            "shift": self.shift,
            "zoom": self.zoom,
            "recolor": self.recolor,
            "skipped": len(splits.skipped),
            "checksum": data_checksum(splits),
        }

    def _encoded(self, part: CaptionedImages, numbers: Int[np.ndarray, " b"]) -> Int[np.ndarray, "b n"]:
        return encode([part.captions[number] + END for number in numbers], self.context)

    def _outputs(self, call: Call, part: CaptionedImages) -> dict[str, np.ndarray]:
        def batch(numbers: Int[np.ndarray, " b"]) -> dict[str, np.ndarray]:
            return {"images": scale_pixels(part.images[numbers]), "text": self._encoded(part, numbers)}

        return call_in_batches(call, "outputs", len(part), batch)

    def _captions(self, call: Call, part: CaptionedImages, numbers: Int[np.ndarray, " b"]) -> list[str]:
        """What the model writes about these images, without the end mark."""
        ids = call_in_batches(
            call, "caption", len(numbers), lambda some: {"images": scale_pixels(part.images[numbers[some]])}
        )
        return [decode(row).partition(END)[0] for row in ids]

    def _exact(self, made: Sequence[str], numbers: Int[np.ndarray, " b"]) -> float:
        """Share of these test images whose caption is right to the letter."""
        test = self.splits.test
        right_captions, _ = right_answers(test.images, test.captions)
        answers = [{test.captions[right] for right in right_captions[number]} for number in numbers]
        return float(np.mean([caption in right for caption, right in zip(made, answers, strict=True)]))

    def _caption(self, model: MaMMUT, batch: Batch) -> Int[Array, "b n"]:
        """Takes the likeliest id at every position, until each row has ended or is full; padding follows the end."""
        _, context = model.embed_image(batch["images"])
        b = context.shape[0]
        end = ord(END) + 1
        text = jnp.full((b, self.context), PAD_ID, jnp.int32).at[:, 0].set(BOS_ID)

        def unfinished(carry: tuple) -> Array:
            position, _, ended = carry
            return (position < self.context) & ~jnp.all(ended)

        def step(carry: tuple) -> tuple:
            position, text, ended = carry
            logits = model.decode(text[:, :-1], context)
            last = jax.lax.dynamic_index_in_dim(logits, position - 1, axis=1, keepdims=False)
            chosen = jnp.where(ended, PAD_ID, jnp.argmax(last, axis=-1).astype(jnp.int32))
            return position + 1, text.at[:, position].set(chosen), ended | (chosen == end)

        return jax.lax.while_loop(unfinished, step, (jnp.ones((), jnp.int32), text, jnp.zeros(b, bool)))[1]


def require_fit(config: MaMMUTConfig, encoder: SimpleViTConfig) -> None:
    """ValueError unless MaMMUT can read the bytes and what the encoder gives."""
    if config.num_tokens < NUM_TOKENS:
        raise ValueError(
            f"num_tokens must be at least {NUM_TOKENS}: 256 bytes, padding and the beginning; "
            f"got num_tokens={config.num_tokens}"
        )
    if config.pad_id != PAD_ID:
        raise ValueError(f"pad_id must be {PAD_ID}, the padding of byte ids; got pad_id={config.pad_id}")
    image_dim = config.dim if config.image_dim is None else config.image_dim
    if image_dim != encoder.dim:
        raise ValueError(
            f"image_dim (dim, if None) must be the encoder's dim={encoder.dim}; "
            f"got image_dim={config.image_dim}, dim={config.dim}"
        )


def require_patches(encoder: SimpleViTConfig, shape: tuple[int, ...]) -> None:
    """ValueError unless images of this shape are whole patches of the encoder."""
    sides = require_height_width("patch_size", encoder.patch_size, minimum=1)
    for name, size, side in zip(("height", "width"), shape, sides, strict=False):
        require_divisible(f"image {name}", size, f"the encoder's patch {name}", side)


def require_context(splits: CaptionedSplits, context: int) -> None:
    """ValueError unless every caption and its two marks have room."""
    require_integer("context", context, minimum=2)
    captions = (*splits.train.captions, *splits.validation.captions, *splits.test.captions)
    longest = max(captions, key=lambda caption: len(caption.encode()))
    least = len(longest.encode()) + 2
    if context < least:
        raise ValueError(
            f"context must be at least {least}, the bytes of the longest caption and its two marks; "
            f"got context={context} and the caption {longest!r} of {splits.source}; raise context or shorten it"
        )


def with_single_spaces(part: CaptionedImages) -> CaptionedImages:
    """The captions with every run of white space, line breaks included, as one space."""
    return CaptionedImages(
        images=part.images, captions=tuple(" ".join(caption.split()) for caption in part.captions)
    )


def evenly(n: int, count: int) -> Int[np.ndarray, " b"]:
    """At most `count` of n numbers, at equal distances, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, count).round().astype(int))


def _named(direction: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{direction}_{name}": value for name, value in values.items()}
