"""Every workload, curves and GPU sizes included, from shapes alone: nothing is allocated."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks import jax_side, roofline
from benchmarks.problem import Problem
from benchmarks.sizes import CURVES, WORKLOADS, Workload, build, inputs, problem, shapes, workload_at
from jaxmodels.data.tokens import PAD_ID
from jaxmodels.models import MODEL_NAMES


TABLE = [(model, size, None) for model in MODEL_NAMES for size in WORKLOADS[model]]
ENDS = [
    (model, "medium", len(CURVES[model][1]) - 1) for model in MODEL_NAMES
]  # the last points of the curves


def names(place: tuple) -> str:
    return "-".join(str(part) for part in place if part is not None)


@pytest.mark.parametrize("place", TABLE + ENDS, ids=names)
def test_the_model_takes_its_inputs(place: tuple) -> None:
    _, _, point = place
    workload, image_size = workload_at(*place)
    batch = shapes(workload, image_size)
    assert {value.shape[0] for name, value in batch.items() if name != "decoder"} == {workload.batch}
    graph, state = nnx.split(nnx.eval_shape(lambda: build(workload)))

    def run(state: nnx.State, batch: dict) -> jax.Array:
        model = nnx.merge(graph, state)
        # Curves are never trained, and a loss contains the outputs.
        return jax_side.loss(model, batch) if point is None else jax_side.outputs(model, batch, workload)

    out = jax.eval_shape(run, state, batch)
    assert out.shape[:1] == (() if point is None else (workload.batch,))
    assert out.dtype == np.float32


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_shapes_are_those_of_the_inputs(model: str) -> None:
    workload, image_size = workload_at(model, "small")
    real, promised = inputs(workload, image_size), shapes(workload, image_size)
    assert {k: (v.shape, v.dtype) for k, v in real.items()} == {
        k: (v.shape, v.dtype) for k, v in promised.items()
    }
    assert len({row.tobytes() for row in real.get("images", real.get("tokens"))}) == workload.batch


def test_a_problem_survives_its_file(tmp_path: Path) -> None:
    workload, image_size = workload_at("mammut", "small")
    whole = problem("mammut", workload, image_size)
    whole.write(tmp_path / "problem")
    again = Problem.read(tmp_path / "problem")
    assert again.arguments == whole.arguments
    assert again.encoder["image_size"] == 64
    assert np.array_equal(again.inputs["text"], whole.inputs["text"])


def glom(iters: int) -> Workload:
    workload, _ = workload_at("glom", "small")
    return Workload(config=workload.config, batch=workload.batch, iters=iters)


def test_the_floor_counts_every_step_of_a_loop() -> None:
    config, batch = glom(1).config, glom(1).batch
    # The network between tokens and first level is not in the loop.
    n, d, groups = (config.image_size // config.patch_size) ** 2, config.dim, 2 * config.levels - 2
    feed_forward = groups * 2 * 2 * batch * n * d * 4 * d
    consensus = config.levels * 2 * 2 * batch * n * n * d
    once, thrice = (roofline.analysis(glom(i), 0)["forward_flop"] for i in (1, 3))
    assert thrice - once == pytest.approx(2 * (feed_forward + consensus), rel=0.05)


def test_floors_are_arithmetic_plus_the_traffic_of_the_optimiser() -> None:
    counts = {"parameters": 4.8e12 / 28 / 1000, "forward_flop": 990e9, "train_flop": 2 * 990e9}
    found = roofline.floors({"models": {"glom": counts}})["glom"]
    assert found == pytest.approx({"forward": 1.0, "train": 3.0})


def test_captions_fill_the_text_whatever_their_letters() -> None:
    """Of the GPU's batch of captions some have letters of two bytes and more."""
    workload, image_size = workload_at("mammut", "gpu")
    text = inputs(workload, image_size)["text"]
    assert text.shape == (workload.batch, workload.length)
    assert (text != PAD_ID).sum(1).min() >= workload.length - 3
    assert text.max() < workload.config.num_tokens
