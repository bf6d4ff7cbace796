"""A task that compiles quickly: a small SimpleViT whose loss couples the examples of a batch."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmodels.data.preprocessing import ImagePreprocessing, Preprocessing
from jaxmodels.models.simple_vit import SimpleViT, SimpleViTConfig
from jaxmodels.training.draws import Draws
from jaxmodels.training.task import Exported, Metric, Sample, Unit


class ToyTask:
    """Pulls the outputs of images of one class together and those of two classes apart."""

    name = "toy"
    examples = 40
    unit = Unit("images")
    metric = Metric(name="accuracy", better="higher")

    def __init__(self, *, patch_dropout: float = 0.0, poison: int | None = None) -> None:
        self.config = SimpleViTConfig(
            image_size=8,
            patch_size=4,
            num_classes=4,
            dim=16,
            depth=1,
            heads=2,
            mlp_dim=16,
            dim_head=8,
            patch_dropout=patch_dropout,
        )
        random = np.random.default_rng(0)
        self.labels = random.integers(0, 4, self.examples).astype(np.int32)
        self.images = random.normal(size=(self.examples, 8, 8, 3)).astype(np.float32)
        self.images += self.labels[:, None, None, None]
        self.poison = poison  # the example of this index is not a number
        self.functions = {"logits": lambda model, batch: model(batch["images"])}

    def model(self, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs) -> SimpleViT:
        return SimpleViT(self.config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def batch(self, indices: np.ndarray, draws: Draws) -> dict[str, np.ndarray]:
        images = self.images[indices] + draws.uniform(-0.2, 0.2, 8, 8, 3)
        if self.poison is not None:
            images[indices == self.poison] = np.nan
        return {"images": images.astype(np.float32), "labels": self.labels[indices]}

    def inputs(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return batch

    def forward(self, model: Any, batch: Mapping[str, Any], rngs: nnx.Rngs | None) -> dict[str, Any]:
        return {"logits": model(batch["images"], rngs=rngs), "labels": batch["labels"]}

    def loss(self, model: Any, outputs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        logits, labels = (
            outputs["logits"].astype(jnp.promote_types(jnp.float32, outputs["logits"].dtype)),
            outputs["labels"],
        )
        same = labels[:, None] == labels[None]
        similarity = jax.nn.log_softmax(logits @ logits.T, axis=1)
        loss = -jnp.mean(jnp.where(same, similarity, 0)) + 1e-3 * jnp.sum(model.linear_head.bias[...] ** 2)
        return loss, {"size": jnp.mean(jnp.square(logits))}

    def evaluate(self, call: Any, split: str) -> dict[str, float]:
        logits = call("logits", {"images": self.images})
        return {
            "accuracy": float(np.mean(logits.argmax(1) == self.labels)),
            "loss": float(np.square(logits).mean()),
        }

    def baselines(self) -> dict[str, dict[str, float]]:
        return {"chance": {"accuracy": 0.25}}

    def samples(self, call: Any) -> list[Sample]:
        return [Sample(title="Labels", text=str(self.labels[:5]))]

    def export(self, model: Any) -> Exported:
        images = ImagePreprocessing(size=8)
        return Exported(
            model=model,
            preprocessing=Preprocessing(images=images, class_names=("a", "b", "c", "d")),
            decoder={"offset": np.zeros(3, np.float32)},
        )

    def describe(self) -> dict[str, Any]:
        return {"source": "random numbers", "examples": self.examples}
