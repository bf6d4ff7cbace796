"""Schedule, clipping, and which parameters are decayed."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxmodels as jm
from jaxmodels.training.functional_model import FunctionalModel
from jaxmodels.training.optimizer import OptimizerConfig, is_decayed, optimizer, schedule


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0}, r"learning_rate must be a finite number > 0; got learning_rate=0"),
        (
            {"weight_decay": -1},
            r"weight_decay must be a number ≥ 0 that is finite in float32; got weight_decay=-1",
        ),
        (
            {"clip_norm": float("nan")},
            r"clip_norm must be a number ≥ 0 that is finite in float32; got clip_norm=nan",
        ),
        ({"weight_decay": 1e300}, r"weight_decay must be .* finite in float32; got weight_decay=1e\+300"),
        ({"b2": 1}, r"b2 must lie in \[0, 1\); got b2=1"),
        ({"ema_decay": 1.5}, r"ema_decay must lie in \[0, 1\); got ema_decay=1.5"),
        ({"final_learning_rate": 2}, r"must lie in \[0, 1\]; got final_learning_rate=2"),
        ({"warmup_steps": -1}, r"warmup_steps must be ≥ 0; got warmup_steps=-1"),
        ({"warmup_steps": 10**14}, r"warmup_steps must be below 2147483647; got warmup_steps=1000"),
    ],
)
def test_wrong_values(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**change)


def test_schedule() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10, final_learning_rate=0.1)
    rates = [float(schedule(config, 100)(step)) for step in range(101)]
    assert rates[10] == max(rates) == 1.0
    np.testing.assert_allclose(np.diff(rates[:11]), 1 / 11, rtol=1e-3)  # step 0 already moves
    np.testing.assert_allclose(rates[55], 0.55, rtol=1e-5)
    np.testing.assert_allclose(rates[100], 0.1, rtol=1e-5)


def peak(config: OptimizerConfig, steps: int) -> int:
    return max(range(steps), key=lambda step: float(schedule(config, steps)(step)))


def test_the_warm_up_that_was_asked_for() -> None:
    assert peak(OptimizerConfig(warmup_steps=500), 2000) == 500
    assert peak(OptimizerConfig(warmup_steps=0), 2000) == 0
    assert peak(OptimizerConfig(warmup_steps=1000), 50) == 49  # it ends on the way up


def test_without_a_number_a_short_run_warms_up_in_a_tenth() -> None:
    assert peak(OptimizerConfig(), 2000) == 50
    assert peak(OptimizerConfig(), 100) == 10
    assert float(schedule(OptimizerConfig(learning_rate=1.0), 1)(0)) == 1.0


def names(make) -> list[str]:
    return FunctionalModel(make).parameters


def exempt(make) -> set[str]:
    """Last parts of the names of all parameters that are not decayed."""
    return {name.rpartition(".")[2] for name in names(make) if not is_decayed(name)}


def test_decay_of_each_model() -> None:
    from flax import nnx

    from tests.training.toy_task import ToyTask

    rngs = nnx.Rngs
    lm = jm.HourglassTransformerLMConfig(num_tokens=8, dim=8, max_seq_len=8, depth=1)
    decayed = {
        name for name in names(lambda: jm.HourglassTransformerLM(lm, rngs=rngs(0))) if is_decayed(name)
    }
    assert "token_emb.embedding" in decayed
    assert "pos_emb.embedding" not in decayed
    assert exempt(lambda: jm.HourglassTransformerLM(lm, rngs=rngs(0))) == {"bias", "scale", "embedding"}
    glom = jm.GlomConfig(dim=8, levels=2, image_size=8, patch_size=4)
    # The biases of GLOM's grouped layers are matrices; a rule by rank would decay them.
    assert exempt(lambda: jm.Glom(glom, rngs=rngs(0))) == {"bias", "embedding", "init_levels"}
    assert exempt(lambda: ToyTask().model(dtype=None, param_dtype=jnp.float32, rngs=rngs(0))) == {
        "bias",
        "scale",
    }
    mammut = jm.MaMMUTConfig(dim=8, num_tokens=8, depth=1)
    all_names = names(lambda: jm.MaMMUT(mammut, rngs=rngs(0)))
    assert sum(name.endswith("token_emb.embedding") for name in all_names) == 1  # tied: counted once
    assert not any("inv_freq" in name for name in all_names)  # a buffer
    assert exempt(lambda: jm.MaMMUT(mammut, rngs=rngs(0))) == {
        "scale",
        "img_queries",
        "temperature",
        "text_cls_token",
    }


def test_decay_and_clipping_act() -> None:
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5, clip_norm=1.0, eps=1e-3)
    parameters = {"layer.kernel": jnp.full((2, 2), 4.0), "layer.bias": jnp.full(2, 4.0)}
    tx = optimizer(config, 10, parameters)
    zero = {name: jnp.zeros_like(x) for name, x in parameters.items()}
    updates, _ = tx.update(zero, tx.init(parameters), parameters)
    np.testing.assert_allclose(updates["layer.kernel"], -0.1 * 0.5 * 4.0, rtol=1e-6)
    np.testing.assert_array_equal(updates["layer.bias"], 0)
    large = {name: jnp.full_like(x, 100.0) for name, x in parameters.items()}
    _, state = tx.update(large, tx.init(parameters), parameters)
    clipped = 1 / np.sqrt(6)  # six numbers of one size and norm 1
    first_moment = (1 - config.b1) * clipped
    np.testing.assert_allclose(state[1][0].mu["layer.bias"], first_moment, rtol=1e-5)
