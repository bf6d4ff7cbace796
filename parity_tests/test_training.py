"""The training tasks in PyTorch: the same loss, the same metrics from exported weights, and a plain loop that learns."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jaxmodels as jm
from jaxmodels.compare.torch_tasks import TorchTask, train_torch
from jaxmodels.data import CaptionedImages, CaptionedSplits, LabelledImages, LabelledSplits, TextSplits, emoji
from jaxmodels.data.tokens import NUM_TOKENS
from jaxmodels.training.blueprint import Blueprint
from jaxmodels.training.experiment import Experiment
from jaxmodels.training.loop import train
from jaxmodels.training.mesh import MeshConfig
from jaxmodels.training.optimizer import OptimizerConfig
from jaxmodels.training.task import Task
from jaxmodels.training.tasks.captioning import Captioning
from jaxmodels.training.tasks.classification import Classification
from jaxmodels.training.tasks.denoising import Denoising
from jaxmodels.training.tasks.language import LanguageModelling
from parity_tests.cases.colt5 import CASES as COLT5_CASES


def pictures(start: int, count: int = 40) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Emoji of all groups at 16 pixels."""
    data = emoji("noto", skin_tones=False)
    chosen = np.linspace(start, len(data) - 1, count).astype(int)
    return data.images[chosen][:, ::4, ::4], data.labels[chosen] % 3, tuple(data.captions[i] for i in chosen)


def labelled(start: int) -> LabelledImages:
    images, labels, _ = pictures(start)
    return LabelledImages(images=images, labels=labels)


def captioned(start: int) -> CaptionedImages:
    images, _, captions = pictures(start)
    return CaptionedImages(images=images, captions=tuple(caption[:20] for caption in captions))


def label_splits() -> LabelledSplits:
    parts = {"train": labelled(0), "validation": labelled(3), "test": labelled(5)}
    return LabelledSplits(source="emoji", class_names=("a", "b", "c"), **parts)


def language() -> Task:
    text = jm.data.state_of_the_union("validation").text
    config = jm.HourglassTransformerLMConfig(
        num_tokens=256, dim=32, max_seq_len=24, depth=(1, 1, 1), shorten_factor=2, heads=2, dim_head=16
    )
    splits = TextSplits(source="text", train=text[:4000], validation=text[4000:4500], test=text[5000:5700])
    return LanguageModelling(config, splits)


def scalable_vit() -> Task:
    config = jm.ScalableViTConfig(
        num_classes=3,
        dim=8,
        depth=(1, 1),
        heads=(1, 2),
        reduction_factor=(2, 1),
        window_size=(2, None),
        iwsa_dim_key=8,
        iwsa_dim_value=8,
        ssa_dim_key=8,
        ssa_dim_value=8,
    )
    return Classification(config, label_splits(), shift=1, flip=True, label_smoothing=0.1)


def colt5() -> Task:
    config = replace(COLT5_CASES[0].config, image_size=16, patch_size=2, num_classes=3, channels=3)
    return Classification(config, label_splits(), shift=1, flip=False, label_smoothing=0.0)


def glom() -> Task:
    config = jm.GlomConfig(dim=16, levels=3, image_size=16, patch_size=4)
    return Denoising(config, label_splits(), noise=0.5, shift=1)


def mammut() -> Task:
    config = jm.MaMMUTConfig(
        dim=32, num_tokens=NUM_TOKENS, depth=2, image_dim=16, num_img_queries=4, dim_head=8, heads=2
    )
    encoder = jm.SimpleViTConfig(
        image_size=16, patch_size=4, num_classes=3, dim=16, depth=1, heads=2, mlp_dim=16, dim_head=8, patch_dropout=0.0
    )
    splits = CaptionedSplits(source="emoji", train=captioned(0), validation=captioned(3), test=captioned(5))
    return Captioning(config, encoder, splits, context=24, shift=1)


TASKS = {"hourglass": language, "scalable_vit": scalable_vit, "colt5": colt5, "glom": glom, "mammut": mammut}


class Sides:
    """A task with one set of weights on both sides, moved off their initial values."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.task = task

        def make() -> nnx.Module:
            return task.model(dtype=None, param_dtype=jnp.float32, rngs=nnx.Rngs(1))

        self.blueprint = Blueprint(make)
        fresh = self.blueprint.split(make())
        random = np.random.default_rng(0)
        self.parameters = {
            name: value + 0.05 * random.normal(size=value.shape).astype(np.float32) for name, value in fresh.items()
        }
        model, extras = task.export(self.blueprint.merge(self.parameters))
        jm.save_pretrained(model, folder)
        if extras:
            import safetensors.numpy

            extras = {key: np.asarray(value, order="C") for key, value in extras.items()}
            safetensors.numpy.save_file(extras, folder / "extras.safetensors")
        self.theirs = TorchTask(task).load(folder)

    def call(self, name: str, batch: dict[str, np.ndarray]) -> Any:
        function = jax.jit(lambda p, b: self.task.functions[name](self.blueprint.merge(p), b))
        return jax.tree.map(np.asarray, function(self.parameters, batch))

    def batch(self) -> dict[str, np.ndarray]:
        indices = np.arange(8)
        return self.task.batch(indices, [np.random.default_rng(i) for i in indices])


@pytest.fixture(params=TASKS)
def sides(request: pytest.FixtureRequest, tmp_path: Path) -> Sides:
    return Sides(TASKS[request.param](), tmp_path)


def test_loss_and_metrics(sides: Sides) -> None:
    """Accuracies and recalls are counts: among 40 pictures no two sides may disagree about one."""
    task, batch = sides.task, sides.batch()

    def total(parameters: Any, batch: Any) -> Any:
        model = sides.blueprint.merge(parameters)
        return task.loss(model, task.forward(model, batch, None))[0]

    theirs = sides.theirs.loss({key: torch.from_numpy(value) for key, value in batch.items()})
    np.testing.assert_allclose(jax.jit(total)(sides.parameters, batch), theirs.item(), rtol=2e-6)
    ours = task.evaluate(sides.call, "test")
    others = task.evaluate(sides.theirs.call, "test")
    assert ours.keys() == others.keys()
    for name, value in ours.items():
        assert others[name] == pytest.approx(value, rel=1e-5), name


class Given(Experiment):
    """An experiment on a task that is there already."""

    def task(self) -> Task:
        return TASKS["scalable_vit"]()


def test_trained_in_jax_scored_in_pytorch(tmp_path: Path) -> None:
    experiment = Given(
        workdir=tmp_path / "run",
        steps=30,
        batch_size=16,
        mesh=MeshConfig(data=1),
        evaluate_every=30,
        optim=OptimizerConfig(learning_rate=5e-3),
    )
    assert train(experiment) == 0
    task = experiment.task()
    theirs = TorchTask(task).load(tmp_path / "run" / "model")
    import json

    ours = json.loads((tmp_path / "run" / "results.json").read_text())["test"]
    scored = task.evaluate(theirs.call, "test")
    assert scored["top1"] == ours["top1"]
    assert scored["loss"] == pytest.approx(ours["loss"], rel=1e-5)

    losses: list[float] = []
    trained = train_torch(experiment, task, progress=lambda step, loss: losses.append(loss))
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])
    again: list[float] = []
    train_torch(experiment, task, progress=lambda step, loss: again.append(loss))
    np.testing.assert_allclose(again, losses, rtol=1e-4)
    assert 0 <= task.evaluate(trained.call, "test")["top1"] <= 1


def test_the_same_parameters_are_decayed() -> None:
    for name, make in TASKS.items():
        twin = TorchTask(make())
        decayed, other = twin.parameter_groups(0.1)
        count = len(list(twin.model.parameters())) + (2 if twin.decoder is not None else 0)
        assert len(decayed["params"]) + len(other["params"]) == count, name
        assert all(parameter.ndim >= 2 for parameter in decayed["params"]), name
        assert decayed["params"], name
