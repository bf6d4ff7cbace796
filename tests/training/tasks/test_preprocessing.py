"""The preprocessing in a hub folder makes the inputs that training made."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import jaxmodels as jm
from jaxmodels.data import emoji
from jaxmodels.training.command import parse
from jaxmodels.training.task import Task
from tests.training.small_tasks import TASKS


class FirstBatch(Exception):
    """Raised to end an evaluation once its first batch is known."""


def evaluated(task: Task) -> dict[str, np.ndarray]:
    """The first batch of the test data that the task's evaluation gives to the model."""

    def call(name: str, batch: dict[str, np.ndarray]) -> Any:
        raise FirstBatch(batch)

    with pytest.raises(FirstBatch) as stopped:
        task.evaluate(call, "test")
    return stopped.value.args[0]


def preprocessing(task: Any, folder: Path) -> jm.data.Preprocessing:
    """From a hub folder that training would write."""
    model = nnx.eval_shape(lambda: task.model(dtype=None, param_dtype=np.float32, rngs=nnx.Rngs(0)))
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), nnx.state(model))
    exported = task.export(nnx.merge(nnx.graphdef(model), zeros))
    jm.save_pretrained(exported.model, folder, preprocessing=exported.preprocessing, decoder=exported.decoder)
    return jm.load_preprocessing(folder)


@pytest.mark.parametrize("name", ["scalable_vit", "colt5", "mammut"])
def test_images_and_texts(name: str, tmp_path: Path) -> None:
    task: Any = TASKS[name]()
    saved = preprocessing(task, tmp_path)
    batch = evaluated(task)
    test = task.splits.test
    np.testing.assert_array_equal(saved.images(test.images), batch["images"][: len(test)])
    if name == "mammut":
        np.testing.assert_array_equal(saved.text(test.captions), batch["text"][: len(test)])
    else:
        assert saved.class_names == task.splits.class_names


def test_denoising(tmp_path: Path) -> None:
    task: Any = TASKS["glom"]()
    saved = preprocessing(task, tmp_path)
    clean, _ = task._held_out("test")
    np.testing.assert_array_equal(saved.images(task.splits.test.images), clean)
    assert set(jm.load_decoder(tmp_path)) == {"decoder.kernel", "decoder.bias"}


def test_bytes(tmp_path: Path) -> None:
    task: Any = TASKS["hourglass"]()
    saved = preprocessing(task, tmp_path)
    tokens = evaluated(task)["tokens"][0]
    text = bytes(tokens.astype(np.uint8)).decode()
    np.testing.assert_array_equal(saved.text([text])[0], tokens)


def test_files(tmp_path: Path) -> None:
    """Of other sizes and shapes than the model's: cut and resized as when they were read for training."""
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        for split in ("train", "validation", "test"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            pixels = random.integers(0, 256, (40, 53, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{split}.png")
    experiment: Any = parse(
        ["scalable-vit-emoji", "--workdir", "run", "--data", str(tmp_path / "data"), "--image-size", "16"]
    )
    task: Any = experiment.task()
    images = task.export(nnx.Module()).preprocessing.images
    files = [tmp_path / "data" / "test" / name / "test.png" for name in ("a", "b")]
    np.testing.assert_array_equal(images(files), evaluated(task)["images"][:2])


def test_the_embedded_images(tmp_path: Path) -> None:
    experiment: Any = parse(["glom-emoji", "--workdir", "run"])
    task = experiment.task()
    full = emoji(split="test", holdout="fluent", skin_tones=False)
    images = preprocessing(task, tmp_path).images
    np.testing.assert_array_equal(images(full.images), task._held_out("test")[0])
