"""Numbers recorded from the published CoLT5 package, reproduced by both implementations: logits, layers, routing, gradients."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxmodels as jm
from jaxmodels.nn.coordinate_descent import coordinate_descent
from parity_tests.colt5_pairs import (
    A_LOGITS,
    A,
    B,
    channels_last,
    chosen_by,
    forward,
    golden_pair,
    gradients,
    image,
    sorted_indices,
    streams,
)
from torch_reference import colt5 as reference_module
from torch_reference import coordinate_descent as reference_descent


def test_golden_a_forward() -> None:
    reference, ours = golden_pair(A)
    logits = [
        reference(torch.from_numpy(image(2))).detach().numpy(),
        np.asarray(forward(ours, channels_last(image(2)))),
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
    for routed in (reference.routing(torch.from_numpy(image(2))), chosen_by(ours, channels_last(image(2)))):
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
    for routed in (reference.routing(torch.from_numpy(x)), chosen_by(ours, channels_last(x))):
        assert sorted_indices(routed) == [
            [[[3, 11, 12, 13, 14, 15]]],
            [[[3, 6, 7, 11, 15], [4, 5, 6, 8, 9]]],
            [[[3, 7, 10, 11, 12, 14, 15]]],
            [[[1, 4, 5, 6, 8, 9]]],
            [[[0, 1, 4, 5, 9], [2, 11, 12, 14, 15]]],
            [[[0, 1, 4, 5, 8, 9, 10]]],
        ]
    logits = [[0.0467330312284, 0.074589021826, -0.137077967748, -0.104127541549, -0.0710506076766]]
    for out in (reference(torch.from_numpy(x)).detach().numpy(), np.asarray(forward(ours, channels_last(x)))):
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
    """Routing vectors times 60: the output stays, and saturated routers get no gradient."""
    reference, ours = golden_pair(A, sharpness=60)
    for out in (
        reference(torch.from_numpy(image(2))).detach().numpy(),
        np.asarray(forward(ours, channels_last(image(2)))),
    ):
        np.testing.assert_allclose(out, A_LOGITS, rtol=0, atol=1e-12)
    assert sorted_indices(chosen_by(ours, channels_last(image(2))))[3][:3] == [[[2, 3]], [[0, 2]], [[2, 3]]]
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
        np.asarray(forward(ours, channels_last(image(2)))),
    ):
        np.testing.assert_allclose(out, logits, rtol=0, atol=1e-12)
    for routed in (reference.routing(torch.from_numpy(image(2))), chosen_by(ours, channels_last(image(2)))):
        assert sorted_indices(routed)[3][:3] == [[[1, 2]], [[0, 2]], [[1, 2]]]
    for _, _, parameters in gradients(reference, ours, image(2)):
        norm = np.linalg.norm(parameters["transformer.layers.0.0.q_router.routing_token"])
        np.testing.assert_allclose(norm, 0.000887005309018, rtol=1e-10)
