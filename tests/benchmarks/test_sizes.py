"""Every workload, curves and GPU sizes included, from shapes alone: nothing is allocated."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks import pages, roofline
from benchmarks.pairs import PAIRS
from benchmarks.workload import Workload, to_ours
from jaxmodels.benchmark import rows
from jaxmodels.data.tokens import PAD_ID
from jaxmodels.models import MODEL_NAMES


TABLE = [(model, size, None) for model in MODEL_NAMES for size in PAIRS[model].sizes]
# The last points of the curves.
ENDS = [(model, "medium", len(PAIRS[model].curve.points) - 1) for model in MODEL_NAMES]


def names(place: tuple) -> str:
    return "-".join(str(part) for part in place if part is not None)


@pytest.mark.parametrize("place", TABLE + ENDS, ids=names)
def test_the_model_takes_its_inputs(place: tuple) -> None:
    model, size, point = place
    pair = PAIRS[model]
    workload = replace(pair.workload(size, point), batch=2)  # quick to make
    inputs = pair.inputs(workload)
    assert {value.shape[0] for name, value in inputs.items() if name != "decoder"} == {workload.batch}
    graph, state = nnx.split(nnx.eval_shape(lambda: pair.build(workload)))

    def run(state: nnx.State, batch: dict) -> jax.Array:
        # Curves are never trained, and a loss contains the outputs.
        function = pair.loss_ours if point is None else pair.call
        return function(nnx.merge(graph, state), batch, workload)

    out = jax.eval_shape(run, state, to_ours(inputs))
    assert out.shape[:1] == (() if point is None else (workload.batch,))
    assert out.dtype == np.float32


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_examples_differ(model: str) -> None:
    workload = PAIRS[model].sizes["small"]
    inputs = PAIRS[model].inputs(workload)
    assert len({row.tobytes() for row in inputs.get("images", inputs.get("tokens"))}) == workload.batch


def test_workloads_are_those_of_the_published_results() -> None:
    """By this text `--compare` knows whether two runs measured the same."""
    for name, text in rows.read(pages.RESULTS / "cpu.json")["workloads"].items():
        model, size = name.split()
        assert PAIRS[model].described(size) == text


def glom(iters: int) -> Workload:
    return replace(PAIRS["glom"].sizes["small"], iters=iters)


def test_the_floor_counts_every_step_of_a_loop() -> None:
    config, batch = PAIRS["glom"].config(glom(1)), glom(1).batch
    # The network between tokens and first level is not in the loop.
    n, d, groups = (config.image_size // config.patch_size) ** 2, config.dim, 2 * config.levels - 2
    feed_forward = groups * 2 * 2 * batch * n * d * 4 * d
    consensus = config.levels * 2 * 2 * batch * n * n * d
    once, thrice = (roofline.analysis(PAIRS["glom"], glom(i))["forward_flop"] for i in (1, 3))
    assert thrice - once == pytest.approx(2 * (feed_forward + consensus), rel=0.05)


def test_floors_are_arithmetic_plus_the_traffic_of_the_optimiser() -> None:
    counts = {"parameters": 4.8e12 / 28 / 1000, "forward_flop": 990e9, "train_flop": 2 * 990e9}
    found = roofline.floors({"models": {"glom": counts}})["glom"]
    assert found == pytest.approx({"forward": 1.0, "train": 3.0})


def test_captions_fill_the_text_whatever_their_letters() -> None:
    """Of the GPU's batch of captions some have letters of two bytes and more."""
    workload = PAIRS["mammut"].sizes["gpu"]
    text = PAIRS["mammut"].inputs(workload)["text"]
    assert text.shape == (workload.batch, workload.length)
    assert (text != PAD_ID).sum(1).min() >= workload.length - 3
    assert text.max() < workload.arguments["num_tokens"]
