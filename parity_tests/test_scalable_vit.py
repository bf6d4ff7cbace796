"""ScalableViT beyond the rows: goldens, quirks, weights, initialisation, dropout sites.

| hazard | caught by |
| --- | --- |
| tanh GELU, unbiased variance, head order, scale, transposed windows or map | goldens S1, S4, all rows |
| epsilons 1e-6, epsilon outside the root | goldens S2, S4 at 1e-12 |
| IWSA before the second feed-forward, PEG without residual, LIM after the output | goldens S1–S5, rows |
| 'SAME' padding on even maps | goldens S1 (16 → 4 → 2), S4, row `depth` |
| reduction that pads instead of ignoring the rest | golden S3, row `reduction_factor` |
| extra norm on the last stage, missing one on the others | S1, S5, row `features of staged arguments` |
| layouts of kernels | S1, `test_weights` (bit for bit) |
| one-pass variance | `test_features_far_from_zero_in_float32` |
| empty slot 2 | `test_weights` with two blocks |
| window None on an oblong map | S2 |
| dropout sites | row `dropout`, `test_dropout_sites` |
"""

import re
from dataclasses import asdict
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmodels as jm
import torch_reference
from jaxmodels.convert.scalable_vit import infer_config
from jaxmodels.models import scalable_vit
from parity_tests.cases.vit_pytorch import published
from parity_tests.harness import AS_USERS, assert_init_matches, assert_layout_matches, assert_round_trip


GOLDEN = {
    "num_classes": 5,
    "dim": 8,
    "heads": 2,
    "depth": (2, 1),
    "reduction_factor": (2, 1),
    "window_size": (2, None),
    "ssa_dim_key": 3,
    "ssa_dim_value": 4,
    "iwsa_dim_key": 5,
    "iwsa_dim_value": 6,
}
THREE_STAGES = {
    "depth": (1, 1, 1),
    "heads": (1, 2, 4),
    "reduction_factor": (4, 2, 1),
    "window_size": (4, 2, None),
    "ssa_dim_key": (5, 4, 3),
}


def wave(shape: tuple[int, ...], k: int = 0) -> np.ndarray:
    i = np.arange(1, np.prod(shape) + 1, dtype=np.int64)
    return np.sin(0.1 * (i * i) + float(k)).reshape(shape)


def golden_pair(**changes) -> tuple[torch.nn.Module, nnx.Module]:
    """Reference and JAX model in float64, with the weights of the recorded numbers: a formula."""
    reference = torch_reference.ScalableViT(**GOLDEN | changes).double().eval()
    with torch.no_grad():
        for k, (name, p) in enumerate(reference.named_parameters()):
            one = name.endswith(".g") or name == "mlp_head.1.weight"
            p.copy_(torch.from_numpy(0.3 * wave(tuple(p.shape), k) + one))
    return reference, twin_of(reference, jm.ScalableViTConfig(**GOLDEN | changes))


def twin_of(reference: torch.nn.Module, config: jm.ScalableViTConfig) -> nnx.Module:
    ours = nnx.eval_shape(lambda: jm.ScalableViT(config, rngs=nnx.Rngs(0)))
    return jm.load_state_dict(ours, reference.state_dict())


def last(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def forward(model: nnx.Module, x: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(lambda model, images: model(images))(model, last(x)))


GOLDENS = [
    pytest.param(
        {}, (2, 3, 16, 16),
        [2.07289753952214, -0.38819008706558, -1.88840225720327, 0.139168910272813, -0.814899779313918],
        -0.179080334364277, 1.27379157092357, id="S1",
    ),
    pytest.param(
        {"window_size": None}, (1, 3, 16, 24),
        [3.16170511969028, -0.561590723734009, -1.95376455302846, -0.45318474666626, 0.23560027036507],
        0.0857530733253244, 1.69428895337329, id="S2",
    ),
    pytest.param(
        {"window_size": None, "reduction_factor": (3, 2)}, (1, 3, 30, 22),
        [1.99179433724341, -0.728120757199946, -1.64198837121932, 0.152414339247715, -1.23913008439996],
        -0.29300610726562, 1.29018920570267, id="S3",
    ),
    pytest.param(
        THREE_STAGES, (1, 3, 32, 32),
        [1.07840290685542, -0.126768601450287, -1.02528550750206, -0.760442051243644, 0.703731088422185],
        -0.0260724329836783, 0.812446204868323, id="S4",
    ),
    pytest.param(
        {"depth": (1,), "reduction_factor": 2, "window_size": 2}, (1, 3, 16, 16),
        [0.574894785772172, -0.751745680239364, -1.22735688017331, 0.999665141671994, -1.41061676497663],
        -0.363031879589027, 0.972855571900869, id="S5",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "shape", "first", "mean", "std"), GOLDENS)
def test_golden(changes, shape, first, mean, std) -> None:
    reference, ours = golden_pair(**changes)
    image = wave(shape)
    theirs = reference(torch.from_numpy(image)).detach().numpy()
    for out in (theirs, forward(ours, image)):
        np.testing.assert_allclose(out.ravel()[:5], first, rtol=0, atol=1e-13)
        np.testing.assert_allclose([out.mean(), out.std()], [mean, std], rtol=0, atol=1e-13)


def test_golden_s1_loss_and_gradients() -> None:
    reference, ours = golden_pair()
    image = wave((2, 3, 16, 16))

    def loss(model: nnx.Module) -> jax.Array:
        return -jnp.mean(jax.nn.log_softmax(model(last(image)))[jnp.arange(2), jnp.array([1, 3])])

    value, gradients = jax.jit(jax.value_and_grad(loss))(ours)
    theirs = torch.nn.functional.cross_entropy(reference(torch.from_numpy(image)), torch.tensor([1, 3]))
    theirs.backward()
    for actual in (float(value), theirs.item()):
        np.testing.assert_allclose(actual, 2.5664831487163013, rtol=0, atol=1e-14)
    mine = jm.to_state_dict(gradients)
    block, expected = "layers.0.0.layers", {}
    expected["to_patches.weight"] = ([0.0645888490315765, -0.10810747939656734], 3.13602355336297)
    expected[f"{block}.0.2.proj.weight"] = ([0.339002271348193, 0.22584511602283222], 1.66105682595635)
    expected["layers.0.1.conv.weight"] = ([-8.064849477876297e-4, 0.03525544399587362], 2.34499875515445)
    expected[f"{block}.1.4.local_interactive_module.weight"] = (
        [0.0028139658385297945, -0.016250059749110674],
        0.90162926689214,
    )
    expected[f"{block}.0.0.to_k.weight"] = ([0.012025914544919128, 0.060119068871330075], 0.541177804494239)
    expected["layers.1.0.layers.0.4.norm.g"] = (
        [-0.0989796100567707, -0.02330776918723869],
        0.290894135961625,
    )
    expected["mlp_head.2.bias"] = ([0.7622870652096533, -0.42924973529137395], 0.963210253230331)
    parameters = dict(reference.named_parameters())
    for key, (first, norm) in expected.items():
        for gradient in (mine[key], parameters[key].grad.numpy()):
            np.testing.assert_allclose(gradient.ravel()[:2], first, rtol=0, atol=1e-14, err_msg=key)
            np.testing.assert_allclose(np.linalg.norm(gradient), norm, rtol=1e-13, err_msg=key)


def test_features_far_from_zero_in_float32() -> None:
    """A one-pass variance would lose its digits: 1e-4 off, against 2e-7."""
    reference, _ = golden_pair()
    with torch.no_grad():
        reference.to_patches.bias.add_(1000)
    image = wave((2, 3, 16, 16))
    exact = reference(torch.from_numpy(image)).detach().numpy()
    ours = twin_of(reference.float(), jm.ScalableViTConfig(**GOLDEN))
    actual = forward(ours, image.astype(np.float32))
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, THREE_STAGES], ids=["two blocks", "three stages"])
def test_weights(changes) -> None:
    config = jm.ScalableViTConfig(**GOLDEN | changes)
    package = published("scalable_vit").ScalableViT(**asdict(config))
    reference = torch_reference.ScalableViT(**asdict(config))
    assert_layout_matches(reference, package)
    assert_round_trip(lambda: jm.ScalableViT(config, rngs=nnx.Rngs(0)), package)
    if not changes:
        assert len(package.state_dict()) == 98
        assert sum(p.numel() for p in package.parameters()) == 16_409


def test_the_same_seed_gives_the_package_and_the_reference_the_same_weights() -> None:
    torch.manual_seed(0)
    package = published("scalable_vit").ScalableViT(**GOLDEN)
    torch.manual_seed(0)
    reference = torch_reference.ScalableViT(**GOLDEN)
    for (key, expected), actual in zip(
        package.state_dict().items(), reference.state_dict().values(), strict=True
    ):
        assert torch.equal(actual, expected), key


def test_initialisation_matches() -> None:
    config = jm.ScalableViTConfig(**GOLDEN | {"dim": 16, "num_classes": 40})
    assert_init_matches(
        lambda seed: jm.ScalableViT(config, rngs=nnx.Rngs(seed)),
        lambda: published("scalable_vit").ScalableViT(**asdict(config)),
    )


def older_key(key: str) -> str:
    """Today's key as vit-pytorch ≤ 1.4.2 wrote it."""
    match = re.fullmatch(r"(layers\.\d+\.0\.layers\.\d+\.)(\d)\.(.*)", key)
    if not match:
        return key
    block, slot, rest = match.groups()
    if slot in "04":
        rest = rest if rest.startswith("norm.") else f"fn.{rest}"
    if slot in "13":
        renames = (("net.0.", "norm."), ("net.1.", "fn.net.0."), ("net.4.", "fn.net.3."))
        rest = next(old + rest.removeprefix(new) for new, old in renames if rest.startswith(new))
    return f"{block}{slot}.{rest}"


def test_checkpoints_of_older_releases_load() -> None:
    reference, ours = golden_pair()
    older = {older_key(key): value for key, value in reference.state_dict().items()}
    assert "layers.0.0.layers.0.1.fn.net.3.weight" in older
    assert "layers.0.0.layers.0.4.fn.to_out.0.bias" in older
    fresh = jm.ScalableViT(jm.ScalableViTConfig(**GOLDEN), rngs=nnx.Rngs(1))
    loaded, current = jm.to_state_dict(jm.load_state_dict(fresh, older)), jm.to_state_dict(ours)
    assert list(loaded) == list(current)
    for key in current:
        np.testing.assert_array_equal(loaded[key], current[key], err_msg=key)


def test_other_layouts_are_refused() -> None:
    reference, _ = golden_pair()
    older = {older_key(key): value for key, value in reference.state_dict().items()}
    # Before 0.31.1 the last stage had a norm as well: another function, so not a matter of names.
    older["layers.1.0.norm.g"] = older["layers.1.0.norm.b"] = torch.ones(1, 16, 1, 1)
    fresh = jm.ScalableViT(jm.ScalableViTConfig(**GOLDEN), rngs=nnx.Rngs(1))
    with pytest.raises(ValueError, match=r"not in the model: layers\.1\.0\.norm\.b"):
        jm.load_state_dict(fresh, older)


@pytest.mark.parametrize("changes", [{}, THREE_STAGES, {"depth": (0, 1)}], ids=["S1", "S4", "empty stage"])
def test_configuration_is_read_off_a_checkpoint(changes) -> None:
    config = jm.ScalableViTConfig(**GOLDEN | changes)
    arrays = jm.to_state_dict(jm.ScalableViT(config, rngs=nnx.Rngs(0)))
    inferred = infer_config(arrays, {"heads": config.heads, "window_size": config.window_size})
    again = jm.ScalableViT(jm.ScalableViTConfig(**inferred), rngs=nnx.Rngs(1))
    jm.load_state_dict(again, arrays)
    if 0 not in config.depth:  # a stage without blocks does not show what its blocks would be
        assert jm.ScalableViTConfig(**inferred) == config
    assert infer_config(arrays, {"ssa_dim_key": config.ssa_dim_key})["heads"] == config.heads
    with pytest.raises(ValueError, match=r"heads must be given; stage \d of the checkpoint has heads · ssa"):
        infer_config(arrays, {})


def test_dropout_sites() -> None:
    """In every block: attention weights and outputs of both attentions, hidden and output of both MLPs."""
    options = GOLDEN | {"dropout": 0.25, "window_size": None}
    package = published("scalable_vit").ScalableViT(**options)
    reference = torch_reference.ScalableViT(**options)
    ours = nnx.view(jm.ScalableViT(jm.ScalableViTConfig(**options), rngs=nnx.Rngs(0)), deterministic=False)
    image = wave((1, 3, 16, 16)).astype(np.float32)
    sites = []
    for model in (package, reference):
        shapes: list[tuple] = []

        def record(x, p, training, inplace, shapes=shapes):
            shapes.append((p, tuple(x.shape)))
            return x

        with mock.patch("torch.nn.functional.dropout", record):
            model.train()(torch.from_numpy(image))
        sites.append(shapes)
    attention_weights = [
        (0.25, s) for _, s in sites[0] if s[-2:] in {(16, 4), (16, 16), (4, 4)} and s[1] == 2
    ]
    assert len(sites[0]) == 3 * 8
    assert len(attention_weights) == 3 * 2
    assert sites[1] == sites[0]

    mine: list[tuple] = []

    def record_ours(self, x, *, rngs):
        assert isinstance(rngs, nnx.Rngs)
        assert not self.deterministic
        is_map = (self.rate, x.shape) not in attention_weights
        mine.append((self.rate, (x.shape[0], x.shape[3], *x.shape[1:3]) if is_map else x.shape))
        return x

    with mock.patch.object(scalable_vit.Dropout, "__call__", record_ours):
        ours(last(image), rngs=nnx.Rngs(dropout=0))
    assert mine == sites[0]


def test_dropout_is_seeded_like_the_package() -> None:
    """The reference draws the same masks in the same order, so a training run can be repeated."""
    options = GOLDEN | {"dropout": 0.25}
    package = published("scalable_vit").ScalableViT(**options)
    reference = torch_reference.ScalableViT(**options)
    reference.load_state_dict(package.state_dict())
    image = torch.from_numpy(wave((2, 3, 16, 16)).astype(np.float32))
    outputs = []
    for model in (package, reference):
        torch.manual_seed(4)
        outputs.append(model.train()(image))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-5)


@pytest.mark.usefixtures("unchecked_types")
def test_unbatched_images_are_refused_where_the_package_computes_something_else() -> None:
    image = torch.from_numpy(wave((1, 3, 16, 16)))
    package = published("scalable_vit").ScalableViT(**GOLDEN | {"window_size": None}).double().eval()
    reference, ours = golden_pair(window_size=None)
    package.load_state_dict(reference.state_dict())
    with torch.no_grad():
        try:
            distance = (package(image[0]) - package(image)).abs().max()
        except Exception:
            distance = torch.tensor(torch.inf)
    assert distance > 0.01
    with pytest.raises(ValueError, match=r"img must have shape \(b, 3, height, width\)"):
        reference(image[0])
    with pytest.raises(ValueError, match=r"images must have shape \(b, height, width, 3\)"):
        ours(last(image.numpy())[0])


def test_lists_mean_what_tuples_mean() -> None:
    """In the package they fail, or, as reduction_factor, silently become one kernel of h×w for all stages."""
    lists = {key: list(value) if isinstance(value, tuple) else value for key, value in GOLDEN.items()}
    for key in ("depth", "window_size"):
        with pytest.raises((AssertionError, TypeError)):
            published("scalable_vit").ScalableViT(**GOLDEN | {key: lists[key]})(torch.zeros(1, 3, 16, 16))
    package = published("scalable_vit").ScalableViT(**GOLDEN | {"reduction_factor": [2, 1]})
    assert package.state_dict()["layers.0.0.layers.0.0.to_k.weight"].shape[2:] == (2, 1)
    assert jm.ScalableViTConfig(**lists) == jm.ScalableViTConfig(**GOLDEN)
    assert hash(jm.ScalableViTConfig(**lists)) == hash(jm.ScalableViTConfig(**GOLDEN))
    torch_reference.ScalableViT(**lists).load_state_dict(torch_reference.ScalableViT(**GOLDEN).state_dict())


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "changes",
    [
        {"depth": 2},
        {"depth": ()},
        {"depth": (1, -1)},
        {"heads": (1, 2, 3)},
        {"heads": 0},
        {"reduction_factor": 0},
        {"window_size": 0},
        {"window_size": ((2, 2), None)},
        {"ssa_dim_key": 1.5},
        {"ff_expansion_factor": 1.5},
        {"dropout": 1.0},
        {"dropout": "0.1"},
        {"dim": 0},
        {"channels": 0},
        {"num_classes": 0},
    ],
    ids=repr,
)
def test_both_refuse_the_same_arguments_in_the_same_words(changes) -> None:
    with pytest.raises(ValueError, match="must be") as theirs:
        torch_reference.ScalableViT(**GOLDEN | changes)
    with pytest.raises(ValueError, match="must be") as ours:
        jm.ScalableViTConfig(**GOLDEN | changes)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("size", [(0, 16), (16, 20), (4, 16)], ids=repr)
def test_both_refuse_the_same_images_in_the_same_words(size) -> None:
    reference, ours = golden_pair()
    with pytest.raises(Exception, match=r".*"):
        published("scalable_vit").ScalableViT(**GOLDEN)(torch.zeros(1, 3, *size))
    with pytest.raises(ValueError, match="must be") as theirs:
        reference(torch.zeros(1, 3, *size))
    with pytest.raises(ValueError, match="must be") as mine:
        ours(jnp.zeros((1, *size, 3)))
    assert str(mine.value) == str(theirs.value)


def test_full_optimisation_agrees() -> None:
    reference, ours = golden_pair(**THREE_STAGES)
    image = wave((2, 3, 32, 32))
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        users = jax.jit(compiler_options=AS_USERS)(lambda model, images: model(images))
        actual = np.asarray(users(ours, jnp.asarray(image.transpose(0, 2, 3, 1))))
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    expected = reference(torch.from_numpy(image)).detach().numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-13)


@st.composite
def configurations(draw) -> tuple[jm.ScalableViTConfig, tuple[int, int]]:
    stages = draw(st.integers(1, 3))

    def staged(strategy):
        return draw(strategy) if draw(st.booleans()) else tuple(draw(strategy) for _ in range(stages))

    config = jm.ScalableViTConfig(
        num_classes=draw(st.integers(1, 3)),
        dim=draw(st.integers(1, 6)),
        depth=tuple(draw(st.integers(0, 1)) for _ in range(stages)),
        heads=staged(st.integers(1, 3)),
        reduction_factor=staged(st.integers(1, 2)),
        window_size=staged(st.sampled_from([None, 1, 2])),
        ssa_dim_key=staged(st.integers(1, 4)),
        ssa_dim_value=staged(st.integers(1, 4)),
        iwsa_dim_key=staged(st.integers(1, 4)),
        iwsa_dim_value=staged(st.integers(1, 4)),
        ff_expansion_factor=draw(st.integers(1, 3)),
        channels=draw(st.integers(1, 3)),
    )
    unit = 4 * 2**stages  # maps with even sides
    return config, (unit * draw(st.integers(1, 2)), unit)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(configurations())
def test_random_configurations(drawn) -> None:
    config, size = drawn
    torch.manual_seed(1)
    reference = torch_reference.ScalableViT(**asdict(config)).double()
    ours = twin_of(reference, config)
    image = np.random.default_rng(2).normal(size=(2, config.channels, *size))
    features = reference.features(torch.from_numpy(image))
    mine = jax.jit(lambda model, images: (model(images), *model.features(images)))(ours, last(image))
    expected = [reference(torch.from_numpy(image)), *(f.permute(0, 2, 3, 1) for f in features)]
    for a, b in zip(mine, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a), b.detach().numpy(), rtol=0, atol=1e-9)
