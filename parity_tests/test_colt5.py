"""The conditionally routed ViT beyond the rows: goldens, quirks, routing, weights, initialisation.

| hazard | caught by |
| --- | --- |
| patch layout, window order, oblong grid, table order, head layout of to_kv, route-major heads | goldens A and B |
| masks, K = n | goldens of the descent |
| ε of the last exponential | `test_descent_is_the_package_s` with three steps, row `schedule` |
| which of several equal scores is selected | golden C, rows `saturated`, `test_any_choice_of_the_package_can_be_replayed` |
| epsilon and place of the norm's floor, its gradient at zero | `test_norm_near_zero` |
| relu's slope at zero | `test_gradient_where_nothing_is_cut_off` |
| LayerNorm's epsilon | `test_flat_image` |
| tanh GELU, null pair scaled by the scores, router on normalised tokens | goldens; row `straight_through` |
| table in float32 | `test_table_follows_the_parameters` |
| selection from another sample | `test_routes_stay_with_their_sample` |
| equal keys with either sign of zero | `test_equal_similarities_select_the_first` |
| gradients of parameters that take no part | rows `routers off`, `all queries, all feed-forward` |
"""

from dataclasses import asdict, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from colt5_attention import coor_descent
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmodels as jm
import torch_reference
from jaxmodels.convert.colt5 import infer_config
from jaxmodels.models.colt5 import RMSNorm
from jaxmodels.nn.coordinate_descent import CoordinateDescentRouter, coordinate_descent
from parity_tests.cases.colt5 import BASE, Published, published, selecting, topk_by
from parity_tests.harness import AS_USERS, assert_init_matches, assert_layout_matches, assert_round_trip
from torch_reference import colt5 as reference_module
from torch_reference import coordinate_descent as reference_descent


# Compiled: operation by operation, every shape of every test would be compiled for itself.
forward = jax.jit(lambda model, images, routing=None: model(images, routing))
chosen_by = jax.jit(lambda model, images: model.routing(images))

A = replace(BASE, depth=2)
B = replace(
    A,
    image_size=(16, 8),
    attn_light_window_size=4,
    attn_num_heavy_tokens_q=6,
    attn_num_heavy_tokens_kv=5,
    attn_num_routed_kv=2,
)


def wave(shape: tuple[int, ...], o: int) -> np.ndarray:
    q = np.arange(1, np.prod(shape) + 1)
    return (0.1 * np.sin(0.1 * q + 0.01 * q**2 + o)).reshape(shape)


def image(b: int, height: int = 16, width: int = 12) -> np.ndarray:
    q = np.arange(1, b * 3 * height * width + 1)
    return np.sin(0.3 * q + 0.001 * q**2).reshape(b, 3, height, width)


def last(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def twin(reference: torch.nn.Module, config: jm.ConditionalRoutedViTConfig) -> jm.ConditionalRoutedViT:
    skeleton = nnx.eval_shape(lambda: jm.ConditionalRoutedViT(config, rngs=nnx.Rngs(0)))
    return jm.load_state_dict(skeleton, reference.state_dict())


def golden_pair(
    config: jm.ConditionalRoutedViTConfig, sharpness: float = 1
) -> tuple[torch_reference.ConditionalRoutedViT, jm.ConditionalRoutedViT]:
    """Reference and JAX model with the contract's weights, in float64."""
    reference = torch_reference.ConditionalRoutedViT(**asdict(config)).double()
    with torch.no_grad():
        for o, (key, parameter) in enumerate(reference.state_dict().items()):
            value = wave(tuple(parameter.shape), o)
            value += parameter.ndim == 1 and key.endswith((".weight", ".gamma"))
            value *= sharpness if key.endswith("routing_token") else 1
            parameter.copy_(torch.from_numpy(value))
    return reference, twin(reference, config)


def random_pair(
    config: jm.ConditionalRoutedViTConfig, sharpness: float = 1, seed: int = 0
) -> tuple[torch_reference.ConditionalRoutedViT, jm.ConditionalRoutedViT]:
    torch.manual_seed(seed)
    reference = torch_reference.ConditionalRoutedViT(**asdict(config)).double()
    with torch.no_grad():
        for router in reference.routers:
            router.routing_token.mul_(sharpness)
    return reference, twin(reference, config)


def package(reference: torch.nn.Module, config: jm.ConditionalRoutedViTConfig) -> Published:
    model = published(config).double()
    model.load_state_dict(reference.state_dict())
    return model


def streams(
    reference: torch.nn.Module, ours: jm.ConditionalRoutedViT, x: np.ndarray
) -> list[list[np.ndarray]]:
    """The residual stream before the blocks and after every layer, as (b, n, d), on both sides."""
    theirs: list[np.ndarray] = []
    hooks = [reference.transformer.register_forward_pre_hook(lambda _, args: theirs.append(args[0].numpy()))]
    for block in reference.transformer.layers:
        for layer in block:
            hooks.append(layer.register_forward_hook(lambda _m, _args, out: theirs.append(out.numpy())))
    with torch.no_grad():
        reference(torch.from_numpy(x))
    for hook in hooks:
        hook.remove()
    capture = nnx.capture(lambda model, x: model(x), nnx.Intermediate, method_outputs=nnx.Intermediate)
    captured: Any = jax.jit(lambda model, x: capture(model, x)[1])(ours, last(x))
    tokens = captured["token_norm"]["__call__"][0]
    mine = [np.asarray(tokens + jm.nn.sincos_2d(*tokens.shape[1:], dtype=tokens.dtype))]
    for i in range(ours.config.depth):
        block = captured["transformer"]["blocks"][i]
        mine += [np.asarray(block["attn"]["__call__"][0]), np.asarray(block["ff"]["__call__"][0])]
    return [[s.reshape(len(x), -1, s.shape[-1]) for s in side] for side in (theirs, mine)]


def gradients(
    reference: torch.nn.Module, ours: jm.ConditionalRoutedViT, x: np.ndarray
) -> list[tuple[float, np.ndarray, dict[str, np.ndarray]]]:
    """(loss, gradient of the image, gradients by key) of Σ logits·cos(m) on both sides."""
    img = torch.from_numpy(x).requires_grad_()
    logits = reference(img)
    weights = np.cos(np.arange(logits.numel())).reshape(logits.shape)
    loss = (logits * torch.from_numpy(weights)).sum()
    reference.zero_grad()
    loss.backward()
    theirs = {
        k: (torch.zeros_like(p) if p.grad is None else p.grad).numpy()
        for k, p in reference.named_parameters()
    }

    graphdef, params = nnx.split(ours)

    def our_loss(params: nnx.State, images: jax.Array) -> jax.Array:
        return jnp.sum(nnx.merge(graphdef, params)(images) * weights)

    value, (params, images) = jax.jit(jax.value_and_grad(our_loss, argnums=(0, 1)))(params, last(x))
    mine = jm.to_state_dict(nnx.merge(graphdef, params))
    return [
        (loss.item(), img.grad.numpy(), theirs),
        (float(value), np.asarray(images).transpose(0, 3, 1, 2), mine),
    ]


def sorted_indices(routed: Any) -> list:
    return [np.sort(np.asarray(r.indices), axis=-1).tolist() for r in routed]


A_LOGITS = [
    [0.0208997396704, 0.0434580144126, -0.10318800216, -0.0520309504378, -0.0813679252302],
    [0.0128439883292, -0.0050079784949, -0.031206274087, 0.000130174627384, -0.0867492613131],
]


def test_golden_a_forward() -> None:
    reference, ours = golden_pair(A)
    logits = [
        reference(torch.from_numpy(image(2))).detach().numpy(),
        np.asarray(forward(ours, last(image(2)))),
    ]
    expected = [
        ([0.0452044703407, -0.0815863951735, -0.019562936058, -0.0258193851005], 0.0119177598323, 0.0452669326902),
        ([0.0160822029081, -0.0304565475597, -0.0795769197304, -0.073901560785], -0.0398329246206, 0.0626938002601),
        ([0.0409690222837, -0.0352263342879, -0.0383378083965, -0.0398632019531], -0.0242543468578, 0.0413138640929),
        ([0.0277631041132, 0.0229872358569, 0.0184621673493, 0.0430463763327], 0.0461438156052, 0.0485161060461),
    ]  # fmt: skip
    for out, stream in zip(logits, streams(reference, ours, image(2)), strict=True):
        np.testing.assert_allclose(out, A_LOGITS, rtol=0, atol=1e-12)
        np.testing.assert_allclose([out.mean(), out.std()], [-0.0282218474683, 0.0479851278525], atol=1e-12)
        # The package's layers return the light and the heavy branch without the residual.
        for layer, (first, mean, std) in zip(np.diff(stream, axis=0), expected, strict=True):
            np.testing.assert_allclose(layer.ravel()[:4], first, rtol=0, atol=1e-12)
            np.testing.assert_allclose([layer.mean(), layer.std()], [mean, std], rtol=0, atol=1e-12)


def test_golden_a_embedding_and_table() -> None:
    reference, ours = golden_pair(A)
    table = [0.909297426826, 0.000199999998667, -0.416146836547, 0.99999998]
    table += [0.841470984808, 9.99999998333e-05, 0.540302305868, 0.999999995]
    theirs = reference_module.sincos_2d(4, 6, 8, dtype=torch.float64, device=torch.device("cpu")).numpy()
    mine = np.asarray(jm.nn.sincos_2d(4, 6, 8, dtype=jnp.float64))
    for values, stream in zip((theirs, mine), streams(reference, ours, image(2)), strict=True):
        np.testing.assert_allclose(values[1, 2], table, rtol=0, atol=1e-11)
        embedded = stream[0].reshape(2, 4, 6, 8) - values
        np.testing.assert_allclose(
            embedded[0, 1, 2, :4], [1.9092004853, -1.34493084768, -0.500282261829, 0.610438127745], atol=1e-11
        )


def test_golden_a_routing() -> None:
    reference, ours = golden_pair(A)
    for routed in (reference.routing(torch.from_numpy(image(2))), chosen_by(ours, last(image(2)))):
        q0, kv0, ff0, q1, kv1, ff1 = sorted_indices(routed)
        assert q0[:3] == [[[0, 1]], [[1, 3]], [[0, 2]]]
        assert kv0[:3] == [[[0, 2, 3]], [[0, 1, 3]], [[0, 1, 2]]]
        assert q1[:3] == [[[2, 3]], [[0, 2]], [[2, 3]]]
        assert kv1[:3] == [[[1, 2, 3]], [[0, 2, 3]], [[0, 1, 3]]]
        assert ff0 == [[[3, 9, 10, 16, 21, 22, 23]], [[3, 4, 16, 20, 21, 22, 23]]]
        assert ff1 == [[[1, 6, 7, 8, 12, 13, 19]], [[0, 2, 6, 7, 12, 13, 19]]]
        smallest = min(float(np.asarray(r.margin).min()) for r in routed)
        assert smallest == pytest.approx(2.0e-3, rel=0.05)

    window = streams(reference, ours, image(2))[0][0].reshape(2, 4, 6, 8)[:1, :2, :2].reshape(1, 4, 8)
    options = {"n_iters": 20, "eps": 1.0, "eps_init": 4.0, "eps_decay": 0.7}
    expected = {
        "q_router": (2.25, [0.5961560328, 0.5782690176, 0.5533406066, 0.522234343]),
        "kv_router": (3.375, [0.9258250068, 0.7733801725, 0.887951434, 0.7878433866]),
    }
    for name, (k, scores) in expected.items():
        s = getattr(reference.transformer.layers[0][0], name).similarity(torch.from_numpy(window))
        theirs = reference_descent.coordinate_descent(s, k=k, **options).detach().numpy()
        s = getattr(ours.transformer.blocks[0].attn, name).similarity(jnp.asarray(window))
        mine = coordinate_descent(s, k=k, **options)
        for values in (theirs, mine):
            np.testing.assert_allclose(values[0, 0], scores, rtol=0, atol=1e-10)


def test_golden_a_gradients() -> None:
    attn, ff = "transformer.layers.{}.0.", "transformer.layers.{}.1."
    norms = {
        "to_patch_embedding.2.weight": 3.08667565042,
        attn.format(0) + "null_q_token": 0.838983889891,
        attn.format(0) + "q_router.routing_token": 0.00302112858834,
        attn.format(0) + "kv_router.routing_token": 0.00898649085126,
        attn.format(0) + "heavy_attn.null_kv": 0.0495951376311,
        attn.format(0) + "heavy_attn.to_kv.weight": 0.193830094949,
        ff.format(0) + "router.routing_token": 0.0241791203622,
        attn.format(1) + "q_router.routing_token": 0.00146754270469,
        ff.format(1) + "router.routing_token": 0.0127517345251,
        ff.format(1) + "heavy_ff.1.weight": 0.128798486571,
        "linear_head.2.weight": 8.22802710838,
    }
    entries = {
        attn.format(0) + "q_router.routing_token": [0.0005558155504, -0.0003186643972],
        ff.format(0) + "router.routing_token": [-0.01149139565, -0.003883296403],
        attn.format(0) + "null_q_token": [0.2559334174, 0.3705096815],
    }
    for loss, images, parameters in gradients(*golden_pair(A), image(2)):
        np.testing.assert_allclose(
            [loss, np.linalg.norm(images)], [0.246346739563, 0.349528818853], rtol=1e-11
        )
        for key, norm in norms.items():
            np.testing.assert_allclose(np.linalg.norm(parameters[key]), norm, rtol=1e-10, err_msg=key)
        for key, first in entries.items():
            np.testing.assert_allclose(parameters[key].ravel()[:2], first, rtol=1e-9, err_msg=key)


def test_golden_b_two_routes() -> None:
    reference, ours = golden_pair(B)
    x = image(1, 16, 8)
    for routed in (reference.routing(torch.from_numpy(x)), chosen_by(ours, last(x))):
        assert sorted_indices(routed) == [
            [[[3, 11, 12, 13, 14, 15]]],
            [[[3, 6, 7, 11, 15], [4, 5, 6, 8, 9]]],
            [[[3, 7, 10, 11, 12, 14, 15]]],
            [[[1, 4, 5, 6, 8, 9]]],
            [[[0, 1, 4, 5, 9], [2, 11, 12, 14, 15]]],
            [[[0, 1, 4, 5, 8, 9, 10]]],
        ]
    logits = [[0.0467330312284, 0.074589021826, -0.137077967748, -0.104127541549, -0.0710506076766]]
    for out in (reference(torch.from_numpy(x)).detach().numpy(), np.asarray(forward(ours, last(x)))):
        np.testing.assert_allclose(out, logits, rtol=0, atol=1e-12)
    norms = {
        "kv_router.routing_token": 0.00705408913147,
        "heavy_attn.to_kv.weight": 0.127644654425,
        "heavy_attn.null_kv": 0.0132854705339,
    }
    for loss, _, parameters in gradients(reference, ours, x):
        np.testing.assert_allclose(loss, 0.293605475641, rtol=1e-11)
        for key, norm in norms.items():
            gradient = parameters[f"transformer.layers.0.0.{key}"]
            np.testing.assert_allclose(np.linalg.norm(gradient), norm, rtol=1e-10, err_msg=key)


def test_golden_c_saturated_by_similarity() -> None:
    """60 times the routing vectors change nothing in the output, and take the gradient of saturated routers."""
    reference, ours = golden_pair(A, sharpness=60)
    for out in (
        reference(torch.from_numpy(image(2))).detach().numpy(),
        np.asarray(forward(ours, last(image(2)))),
    ):
        np.testing.assert_allclose(out, A_LOGITS, rtol=0, atol=1e-12)
    assert sorted_indices(chosen_by(ours, last(image(2))))[3][:3] == [[[2, 3]], [[0, 2]], [[2, 3]]]
    for _, _, parameters in gradients(reference, ours, image(2)):
        for i in range(2):
            assert not parameters[f"transformer.layers.{i}.1.router.routing_token"].any()
        norm = np.linalg.norm(parameters["transformer.layers.0.0.q_router.routing_token"])
        np.testing.assert_allclose(norm, 0.000890185517615, rtol=1e-10)


def test_golden_c_saturated_by_index() -> None:
    logits = [
        [0.0208714623334, 0.0437084944164, -0.103679417529, -0.0518539171417, -0.0807065637513],
        [0.0134589924883, -0.00556824939374, -0.0298507895607, -6.58417199579e-05, -0.0869632851203],
    ]
    reference, ours = golden_pair(replace(A, tie_break="index"), sharpness=60)
    for out in (
        reference(torch.from_numpy(image(2))).detach().numpy(),
        np.asarray(forward(ours, last(image(2)))),
    ):
        np.testing.assert_allclose(out, logits, rtol=0, atol=1e-12)
    for routed in (reference.routing(torch.from_numpy(image(2))), chosen_by(ours, last(image(2)))):
        assert sorted_indices(routed)[3][:3] == [[[1, 2]], [[0, 2]], [[1, 2]]]
    for _, _, parameters in gradients(reference, ours, image(2)):
        norm = np.linalg.norm(parameters["transformer.layers.0.0.q_router.routing_token"])
        np.testing.assert_allclose(norm, 0.000887005309018, rtol=1e-10)


SIMILARITIES = np.array([0.5, -1, 2, 0.1, 3, -0.7, 1.2, 0.9])
ANNEALED = {"n_iters": 20, "eps_init": 4.0, "eps_decay": 0.7}
DESCENTS = [
    pytest.param(
        {"k": 2.25, "eps": 1.0, **ANNEALED}, None,
        [0.122766598251, 0.0273929307287, 0.550201721585, 0.0822929117914, 1, 0.0369765888094, 0.247221569615, 0.183146243317],
        id="annealed",
    ),
    pytest.param(
        {"k": 2.25, "eps": 0.03, **ANNEALED}, None,
        [8.24549250972e-22, 1.59034924245e-43, 1, 1.33543732198e-27, 1, 3.50297731906e-39, 1.12138440622e-11, 5.09107732792e-16],
        id="cold",
    ),
    pytest.param(
        {"k": 4.5, "eps": 0.1, "n_iters": 5, "eps_init": None, "eps_decay": 1.0}, None,
        [1, 8.76759741459e-06, 1, 0.524952370103, 1, 0.000176101901598, 1, 1],
        id="constant",
    ),
    pytest.param(
        {"k": 8, "eps": 1.0, **ANNEALED}, None, [1, 0.933399393014, 1, 1, 1, 1, 1, 1], id="all",
    ),
    pytest.param(
        {"k": 2.25, "eps": 1.0, **ANNEALED}, [1, 1, 1, 1, 0, 1, 0, 1],
        [0.339077435675, 0.0756584025248, 1, 0.227290402291, 0, 0.102128161015, 0, 0.505844092952],
        id="masked",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("options", "mask", "expected"), DESCENTS)
def test_golden_descent(options, mask, expected) -> None:
    keep = None if mask is None else np.array(mask, bool)
    s = torch.from_numpy(SIMILARITIES)
    theirs = reference_descent.coordinate_descent(
        s, mask=None if keep is None else torch.from_numpy(keep), **options
    )
    mine = coordinate_descent(jnp.asarray(SIMILARITIES), mask=keep, **options)
    for scores in (theirs.numpy(), np.asarray(mine)):
        np.testing.assert_allclose(scores, expected, rtol=1e-11, atol=0)


def test_golden_gradient_of_the_descent() -> None:
    expected = [-0.424762295978, -0.0673843483979, -0.803249096205, -0.0378479464198]
    expected += [-1.93256441e-05, 0.05694699906, 0.627963194135, 0.648352819449]
    options = {"k": 2.25, "eps": 1.0, **ANNEALED}
    s = torch.from_numpy(SIMILARITIES).requires_grad_()
    (reference_descent.coordinate_descent(s, **options) * torch.arange(1, 9)).sum().backward()
    mine = jax.grad(lambda s: jnp.sum(coordinate_descent(s, **options) * jnp.arange(1, 9)))(
        jnp.asarray(SIMILARITIES)
    )
    for gradient in (s.grad.numpy(), np.asarray(mine)):
        np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("k", [1, 2.25, 7, 8])
@pytest.mark.parametrize(("eps", "n_iters"), [(1.0, 20), (0.03, 20), (0.5, 3)])
def test_descent_is_the_package_s(k, eps, n_iters) -> None:
    """Values and gradients for wide, narrow, tied, masked and fully masked rows; three steps end above `eps`."""
    rng = np.random.default_rng(0)
    s = rng.normal(size=(12, 8)) * np.repeat([0.1, 1, 8], 4)[:, None]
    s[3] = 0
    mask = rng.random((12, 8)) < 0.7
    mask[5] = False
    weights = rng.normal(size=s.shape)
    options = {"k": k, **ANNEALED, "eps": eps, "n_iters": n_iters}
    results = []
    for function in (coor_descent, reference_descent.coordinate_descent):
        t = torch.from_numpy(s).requires_grad_()
        budget = {"k": torch.full((12,), float(k), dtype=t.dtype)} if function is coor_descent else {}
        scores = function(t, mask=torch.from_numpy(mask), **options | budget)
        (scores * torch.from_numpy(weights)).sum().backward()
        results.append((scores.detach().numpy(), t.grad.numpy()))
    scores, back = jax.vjp(lambda s: coordinate_descent(s, mask=mask, **options), jnp.asarray(s))
    results.append((np.asarray(scores), np.asarray(back(jnp.asarray(weights))[0])))
    for scores, gradient in results[1:]:
        np.testing.assert_allclose(scores, results[0][0], rtol=0, atol=1e-12)
        np.testing.assert_allclose(gradient, results[0][1], rtol=0, atol=1e-11 / eps)
        assert not scores[5].any()
        assert not gradient[5].any()


def test_gradient_where_nothing_is_cut_off() -> None:
    """s = 0 and K = n put every constraint exactly on its edge, where relu's slope is 0 in PyTorch."""
    options = {"k": 4, "eps": 1.0, **ANNEALED}
    s = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    weights = [1.0, -2.0, 3.0, 5.0]
    (reference_descent.coordinate_descent(s, **options) * torch.tensor(weights)).sum().backward()
    mine = jax.grad(lambda s: jnp.sum(coordinate_descent(s, **options) * jnp.array(weights)))(jnp.zeros(4))
    np.testing.assert_allclose(mine, s.grad.numpy(), rtol=0, atol=1e-14)
    assert np.abs(mine).max() > 1


@pytest.mark.parametrize("scale", [1, 1e-3, 1e-13, 0])
def test_norm_near_zero(scale) -> None:
    """The floor of 1e-12 is on the norm; a zero vector has value 0 and slope √d·γ/1e-12."""
    x, weights = (np.random.default_rng(seed).normal(size=(3, 4)) for seed in (0, 1))
    theirs, ours = (
        reference_module.RMSNorm(4).double(),
        RMSNorm(4, dtype=None, param_dtype=float, rngs=nnx.Rngs(0)),
    )
    t = torch.from_numpy(scale * x).requires_grad_()
    out = theirs(t)
    (out * torch.from_numpy(weights)).sum().backward()
    mine, back = jax.vjp(ours, jnp.asarray(scale * x))
    np.testing.assert_allclose(mine, out.detach().numpy(), rtol=1e-13, atol=1e-300)
    gradient = t.grad.numpy()
    np.testing.assert_allclose(
        back(jnp.asarray(weights))[0], gradient, rtol=0, atol=1e-12 * np.abs(gradient).max()
    )


def test_flat_image() -> None:
    """A patch of one colour has no variance: LayerNorm divides by the root of its epsilon."""
    reference, ours = random_pair(A)
    x = np.full((1, 3, 16, 12), 0.3) + 1e-3 * image(1)
    theirs = reference(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(forward(ours, last(x)), theirs, rtol=0, atol=1e-11)


def test_table_follows_the_parameters() -> None:
    """The package computes it in PyTorch's default type, so a float64 model loses 9 digits under float32."""
    reference, ours = golden_pair(A)
    model = package(reference, A)
    x = torch.from_numpy(image(2))
    torch.set_default_dtype(torch.float64)
    exact = model(x).detach().numpy()
    torch.set_default_dtype(torch.float32)
    assert 1e-10 < np.abs(model(x).detach().numpy() - exact).max() < 1e-8
    np.testing.assert_allclose(reference(x).detach().numpy(), exact, rtol=0, atol=1e-14)
    np.testing.assert_allclose(np.asarray(forward(ours, last(image(2)))), exact, rtol=0, atol=1e-14)


README = replace(
    BASE,
    image_size=(16, 8),
    patch_size=2,
    attn_light_window_size=4,
    attn_num_heavy_tokens_q=16,
    attn_num_heavy_tokens_kv=16,
)


def test_selecting_every_query_works_where_the_package_fails() -> None:
    """The configuration of the package's README: as many heavy queries as a window has tokens."""
    reference, ours = random_pair(README)
    model, x = package(reference, README), image(2, 16, 8)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        model(torch.from_numpy(x))
    with selecting(model, topk_by("similarity")):
        expected = model(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(reference(torch.from_numpy(x)).detach().numpy(), expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(np.asarray(forward(ours, last(x))), expected, rtol=0, atol=1e-13)
    for _, _, parameters in gradients(reference, ours, x):
        for unused in ("null_q_token", "q_router.routing_token", "kv_router.routing_token"):
            assert not parameters[f"transformer.layers.0.0.{unused}"].any()


def test_routes_stay_with_their_sample() -> None:
    """With several routes the package gathers the context of one sample from others; ours never does."""
    config = replace(A, attn_num_routed_kv=2)
    reference, ours = random_pair(config)
    model, x = package(reference, config), image(3)

    def leak(call) -> float:
        together = np.asarray(call(x))
        alone = np.concatenate([np.asarray(call(x[i : i + 1])) for i in range(3)])
        return float(np.abs(together - alone).max())

    assert leak(lambda x: model(torch.from_numpy(x)).detach()) > 1e-3
    assert leak(lambda x: reference(torch.from_numpy(x)).detach()) < 1e-14
    assert leak(lambda x: forward(ours, last(x))) < 1e-14


def test_any_choice_of_the_package_can_be_replayed() -> None:
    """Saturated scores, `torch.topk` as it is: with its indices given, both sides repeat the package."""
    config = replace(
        A, dim=64, image_size=(32, 32), patch_size=4, attn_light_window_size=4, attn_num_heavy_tokens_q=4
    )
    reference, ours = random_pair(config, sharpness=4)
    model, x = package(reference, config), np.random.default_rng(0).normal(size=(2, 3, 32, 32))
    chosen: list[torch.Tensor] = []

    def native(scores, _similarity, k, _call):
        chosen.append(torch.topk(scores, k).indices)
        return chosen[-1]

    with selecting(model, native):
        expected = model(torch.from_numpy(x)).detach().numpy()
    routing = [indices[:, None] for indices in chosen]
    theirs = reference(torch.from_numpy(x), routing).detach().numpy()
    mine = np.asarray(forward(ours, last(x), [jnp.asarray(indices.numpy()) for indices in routing]))
    np.testing.assert_allclose(theirs, expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-13)
    own = sorted_indices(reference.routing(torch.from_numpy(x)))
    assert own == sorted_indices(chosen_by(ours, last(x)))
    assert own != [np.sort(r.numpy(), axis=-1).tolist() for r in routing], "no tie: nothing was shown"


@pytest.mark.parametrize("tie_break", ["similarity", "index"])
def test_equal_similarities_select_the_first(tie_break) -> None:
    x = np.random.default_rng(0).normal(size=(2, 9, 4))
    theirs = reference_descent.CoordinateDescentRouter(4, num_tokens=3, tie_break=tie_break).double()
    ours = CoordinateDescentRouter(4, num_tokens=3, tie_break=tie_break, rngs=nnx.Rngs(0))
    with torch.no_grad():
        theirs.routing_token.zero_()
    ours.routing_token.set_value(jnp.zeros((1, 4)))
    for routed in (theirs(torch.from_numpy(x)), ours(jnp.asarray(x))):
        assert np.asarray(routed.indices).tolist() == [[[0, 1, 2]]] * 2
        assert not np.asarray(routed.margin).any()


def test_routing_is_computed_in_float32() -> None:
    """bfloat16 activations: similarities, scores and order come from float32 products, on both sides."""
    x = torch.randn(4, 64, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    theirs = reference_descent.CoordinateDescentRouter(32, num_tokens=9)
    ours = CoordinateDescentRouter(32, num_tokens=9, rngs=nnx.Rngs(0))
    ours.routing_token.set_value(jnp.asarray(theirs.routing_token.detach().numpy()))
    exact = theirs.double()(x.double())
    mine, other = ours(jnp.asarray(x.float().numpy(), jnp.bfloat16)), theirs.float()(x)
    for routed in (mine, other):
        np.testing.assert_array_equal(np.asarray(routed.indices), exact.indices.numpy())
        assert str(routed.tokens.dtype).endswith("bfloat16")
        assert str(routed.scores.dtype).endswith("bfloat16")
        assert str(routed.margin.dtype).endswith("float32")


@pytest.mark.parametrize("flash", [True, False])
def test_kernel_switch_changes_no_number(flash) -> None:
    reference, ours = golden_pair(A)
    other = torch_reference.ConditionalRoutedViT(**asdict(A), flash_attn=flash).double()
    other.load_state_dict(reference.state_dict())
    np.testing.assert_allclose(
        other(torch.from_numpy(image(2))).detach().numpy(), A_LOGITS, rtol=0, atol=1e-12
    )
    model = published(A, flash_attn=flash).double()
    model.load_state_dict(reference.state_dict())
    torch.set_default_dtype(torch.float64)
    try:
        theirs = model(torch.from_numpy(image(2))).detach().numpy()
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_allclose(np.asarray(forward(ours, last(image(2)))), theirs, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "config",
    [A, B, replace(A, depth=0), replace(A, channels=1, ff_light_mult=0.37)],
    ids=["A", "B", "0", "odd"],
)
def test_weights(config) -> None:
    reference = torch_reference.ConditionalRoutedViT(**asdict(config))
    assert_layout_matches(reference, published(config))
    assert_round_trip(lambda: jm.ConditionalRoutedViT(config, rngs=nnx.Rngs(0)), published(config))


def test_the_same_seed_draws_the_package_s_weights() -> None:
    torch.manual_seed(0)
    expected = published(B).state_dict()
    torch.manual_seed(0)
    actual = torch_reference.ConditionalRoutedViT(**asdict(B)).state_dict()
    assert all(torch.equal(actual[key], tensor) for key, tensor in expected.items())


def test_initialisation_matches() -> None:
    config = replace(BASE, dim=32, attn_num_routed_kv=2, attn_heavy_dim_head=16, ff_light_mult=2)
    assert_init_matches(
        lambda seed: jm.ConditionalRoutedViT(config, rngs=nnx.Rngs(seed)), lambda: published(config)
    )


@pytest.mark.parametrize(
    ("config", "given"),
    [
        (A, {"attn_light_heads": 2, "patch_size": (4, 2)}),
        (replace(B, patch_size=2, ff_light_mult=0.37, ff_heavy_mult=1.3), {"attn_light_dim_head": 5}),
        (replace(A, depth=0), {"patch_size": [4, 2]}),
    ],
)
def test_configuration_from_a_checkpoint(config, given) -> None:
    state_dict = {k: v.numpy() for k, v in published(config).state_dict().items()}
    inferred = infer_config(state_dict, given)
    if config.depth == 0:
        assert inferred == given | {"num_classes": 5, "dim": 8, "channels": 3, "depth": 0}
        return
    twin = jm.ConditionalRoutedViTConfig(**asdict(config) | inferred)
    jm.load_state_dict(jm.ConditionalRoutedViT(twin, rngs=nnx.Rngs(0)), state_dict)
    exact = {"num_classes", "dim", "depth", "channels", "attn_light_heads", "attn_light_dim_head"}
    exact |= {"attn_heavy_heads", "attn_heavy_dim_head", "attn_num_routed_kv", "patch_size"}
    assert {k: getattr(twin, k) for k in exact} == {k: getattr(config, k) for k in exact}


def test_ambiguous_checkpoints() -> None:
    state_dict = {k: v.numpy() for k, v in published(A).state_dict().items()}
    with pytest.raises(ValueError, match=r"attn_light_heads or attn_light_dim_head must be given.* = 10"):
        infer_config(state_dict, {"patch_size": (4, 2)})
    with pytest.raises(ValueError, match=r"patch_size and channels must be given.* = 24, channels=3"):
        infer_config(state_dict, {})


ERRORS = [
    ({"image_size": (30, 12)}, "image_size height must be a multiple of patch_size height"),
    ({"dim": 4}, "dim must be an integer ≥ 8"),
    ({"dim": 10}, "dim must be a multiple of"),
    ({"depth": -1}, "depth must be an integer ≥ 0"),
    ({"attn_num_heavy_tokens_q": 0}, "attn_num_heavy_tokens_q must be an integer ≥ 1"),
    ({"ff_num_heavy_tokens": 2.5}, "ff_num_heavy_tokens must be an integer ≥ 1"),
    ({"attn_light_window_size": 3}, "must be a multiple of attn_light_window_size"),
    ({"attn_num_routed_kv": 3}, "attn_heavy_heads must be a multiple of attn_num_routed_kv"),
    ({"ff_light_mult": 0.1}, r"int\(dim \* ff_light_mult\) must be"),
    ({"default_coor_descent_eps": 0}, "eps must be > 0"),
    (
        {"router_kwargs": {"route_block_size": 2}},
        "router_kwargs must hold nothing but .*got route_block_size",
    ),
    ({"router_kwargs": {"n_iters": 0}}, "n_iters must be an integer ≥ 1"),
    ({"router_kwargs": {"fetch_k_ratio": 0.5}}, "fetch_k_ratio must be ≥ 1"),
    ({"router_kwargs": {"eps_decay": 1.5}}, r"eps_decay must be in \(0, 1\]"),
    ({"tie_break": "first"}, 'tie_break must be "similarity" or "index"'),
]


@pytest.mark.parametrize(("changes", "message"), ERRORS)
def test_both_sides_refuse_the_same(changes, message) -> None:
    arguments = asdict(BASE) | changes
    for build in (torch_reference.ConditionalRoutedViT, jm.ConditionalRoutedViTConfig):
        with pytest.raises(ValueError, match=message):
            build(**arguments)


def test_what_the_package_does_instead_of_refusing() -> None:
    out = published(BASE, dim=4)(torch.zeros(1, 3, 16, 12))
    assert out.isnan().all()
    with pytest.raises(ValueError, match="router_use_triton must be False"):
        torch_reference.ConditionalRoutedViT(**asdict(BASE), router_use_triton=True)


def test_both_sides_refuse_the_same_calls() -> None:
    reference, ours = golden_pair(A)
    off = random_pair(README)
    calls = [
        (reference, ours, (1, 1, 16, 12), None, "must have shape"),
        (reference, ours, (1, 3, 18, 12), None, "image height must be a multiple of patch_size height"),
        (reference, ours, (1, 3, 16, 14), None, "image width in patches must be a multiple of"),
        (reference, ours, (1, 3, 16, 12), [None] * 5, "an entry for each of the 6 routers; got 5"),
        (reference, ours, (1, 3, 16, 12), [np.zeros((6, 1, 3), int)] + [None] * 5, r"shape \(6, 1, 2\)"),
        (*off, (1, 3, 16, 8), [np.zeros((2, 1, 16), int), None, None], "indices must be None"),
    ]
    for theirs, mine, shape, routing, message in calls:
        x = np.zeros(shape)
        tensors = routing and [None if r is None else torch.from_numpy(r) for r in routing]
        with pytest.raises(ValueError, match=message):
            theirs(torch.from_numpy(x), tensors)
        with pytest.raises(ValueError, match=message):
            mine(last(x), routing and [None if r is None else jnp.asarray(r) for r in routing])


def test_bfloat16_weights() -> None:
    reference, _ = golden_pair(A)
    exact = reference(torch.from_numpy(image(2))).detach().numpy()
    reference = reference.bfloat16()
    ours = twin(reference, A)
    theirs, mine = (
        reference(torch.from_numpy(image(2)).bfloat16()),
        forward(ours, last(image(2)).astype(jnp.bfloat16)),
    )
    assert (theirs.dtype, mine.dtype) == (torch.bfloat16, jnp.bfloat16)
    for out in (theirs.detach().float().numpy(), np.asarray(mine, np.float32)):
        assert np.abs(out - exact).max() < 0.02


def test_full_optimisation_agrees() -> None:
    reference, ours = golden_pair(B)
    x = image(3, 16, 8)
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        theirs, mine = gradients(reference, ours, x)
        actual = np.asarray(jax.jit(compiler_options=AS_USERS)(lambda model, x: model(x))(ours, last(x)))
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    np.testing.assert_allclose(actual, reference(torch.from_numpy(x)).detach().numpy(), rtol=0, atol=1e-13)
    scale = max(np.abs(g).max() for g in theirs[2].values())
    for key, gradient in theirs[2].items():
        np.testing.assert_allclose(mine[2][key], gradient, rtol=0, atol=1e-12 * scale, err_msg=key)


@st.composite
def configurations(draw) -> tuple[jm.ConditionalRoutedViTConfig, tuple[int, int]]:
    patch = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    window, routes = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    grid = tuple(window * draw(st.integers(1, 2)) for _ in range(2))
    size = (grid[0] * patch[0], grid[1] * patch[1])
    config = jm.ConditionalRoutedViTConfig(
        image_size=size,
        patch_size=patch,
        num_classes=draw(st.integers(1, 4)),
        dim=4 * draw(st.integers(2, 5)),
        depth=draw(st.integers(0, 2)),
        attn_num_heavy_tokens_q=draw(st.integers(1, 9)),
        attn_num_heavy_tokens_kv=draw(st.integers(1, 9)),
        attn_heavy_dim_head=draw(st.integers(1, 4)),
        attn_heavy_heads=routes * draw(st.integers(1, 2)),
        attn_light_dim_head=draw(st.integers(1, 4)),
        attn_light_heads=draw(st.integers(1, 3)),
        attn_light_window_size=window,
        ff_num_heavy_tokens=draw(st.integers(1, 12)),
        ff_heavy_mult=draw(st.floats(0.3, 2)),
        ff_light_mult=draw(st.floats(0.3, 2)),
        channels=draw(st.integers(1, 4)),
        router_straight_through=draw(st.booleans()),
        router_kwargs=draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "eps": st.floats(0.1, 2),
                    "cosine_sim_routing": st.booleans(),
                    "n_iters": st.integers(1, 20),
                },
            )
        ),
        attn_num_routed_kv=routes,
        tie_break=draw(st.sampled_from(["similarity", "index"])),
    )
    return config, size


@settings(max_examples=8, deadline=None, derandomize=True)
@given(configurations())
def test_random_configurations(drawn) -> None:
    config, size = drawn
    reference, ours = random_pair(config, seed=1)
    x = np.random.default_rng(2).normal(size=(2, config.channels, *size))
    expected = reference(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(np.asarray(forward(ours, last(x))), expected, rtol=0, atol=1e-9)
    model = package(reference, config)
    with selecting(model, topk_by(config.tie_break)):
        actual = model(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(expected, actual, rtol=0, atol=1e-11)
