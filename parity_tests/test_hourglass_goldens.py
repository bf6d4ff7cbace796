"""Hourglass Transformer against numbers that the package computed once: outputs, a loss, gradients, tokens."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxmodels as jm
import torch_reference
from jaxmodels.generation import generate
from parity_tests.hourglass_pairs import (
    H1,
    H4,
    fill,
    golden_pair,
    ids,
    loss_and_gradients,
    ours_with,
    outputs,
)


MASK = np.ones((2, 12), bool)
MASK[0, 5:] = False
MASK[1, [3, 6, 7, 8]] = False
GOLDENS = [
    pytest.param(
        H1, 12, None,
        [-0.19172173402704, 0.525633607461972, 1.34844851302629, -0.582171094371532, -0.399125301108689, -0.355307207072241],
        0.837399912914563, -0.117305905788241, 0.719629080880829, id="H1",
    ),
    pytest.param(
        H1, 11, None,
        [-0.19172173402704, 0.525633607461972, 1.34844851302629, -0.582171094371532, -0.399125301108689, -0.355307207072241],
        0.707093825385471, -0.16831055759368, 0.726558053389499, id="H2",
    ),
    pytest.param(
        {"depth": (1, 1, 1), "shorten_factor": 3, "updown_sample_type": "linear"}, 12, None,
        [-0.872139871233901, 0.563013968704557, 0.988555019375718, -0.414023646449367, 0.42680728605487, -0.422670040455401],
        -0.111034610201391, -0.0394558716772773, 0.613268325125758, id="H3",
    ),
    pytest.param(
        H4, 12, MASK,
        [0.750955901900939, 0.264975147347492, -0.871127187533944, 0.0302280428236912, -0.629119402456493, -0.228373257119199],
        0.265507356025896, 0.0688080923522884, 0.538094815745643, id="H4",
    ),
    pytest.param(
        H4, 11, MASK[:, :11],
        [0.750955901900939, 0.264975147347492, -0.871127187533944, 0.0302280428236912, -0.629119402456493, -0.228373257119199],
        0.225646709351961, 0.086661121797867, 0.537052150509787, id="H5",
    ),
    pytest.param(
        H4 | {"causal": True}, 12, MASK,
        [0.654142927981792, 0.197170210642993, -0.874165736532138, 0.0718366567458466, -0.524850293001577, -0.164111694665366],
        0.512864520244342, 0.0426407228038986, 0.533705591116711, id="H6",
    ),
    pytest.param(
        {"depth": (1, (1, 1, 1), 1), "shorten_factor": 2, "causal": False, "attn_resampling": False}, 12, None,
        [0.811427677348307, 0.437052895015558, -0.862315153175211, -0.0895868826142167, -0.786845888612171, -0.369293607598708],
        0.142707830627954, 0.055704751112361, 0.583250993588456, id="H7",
    ),
    pytest.param(
        {"depth": 2}, 12, None,
        [-0.316879743684521, -0.837029580385762, -1.15024489482959, 1.31882022455767, -1.00866214410512, 0.603156732039769],
        0.415910013991437, -0.0686402128946217, 0.793167306535444, id="H8",
    ),
    pytest.param(
        H4, 12, np.array([[False], [True]]) & np.ones((2, 12), bool),
        [0.764427146429682, 0.310500375487314, -0.899975271561692, 0.0328961081733287, -0.632839756913003, -0.269772601498246],
        0.230818617592074, 0.0863281223832478, 0.53338894821663, id="H9",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "n", "mask", "first", "end", "mean", "std"), GOLDENS)
def test_golden(changes, n, mask, first, end, mean, std) -> None:
    for out in outputs(*golden_pair(**changes), ids(2, n), mask):
        np.testing.assert_allclose(out.ravel()[:6], first, rtol=0, atol=2e-14)
        np.testing.assert_allclose(
            [out.ravel()[-1], out.mean(), out.std()], [end, mean, std], rtol=0, atol=2e-14
        )


def test_golden_h10_loss_and_gradients() -> None:
    reference, ours = golden_pair(**H1)
    tokens = ids(2, 13)
    wrapped = torch_reference.AutoregressiveWrapper(reference)
    theirs = wrapped(torch.from_numpy(tokens))
    theirs.backward()
    their_gradients = {k: p.grad.numpy() for k, p in reference.named_parameters()}
    value, gradients = loss_and_gradients(ours, tokens)
    our_gradients = jm.to_state_dict(gradients)

    expected = {
        "token_emb.weight": ([-0.007005633413522104, -0.010344495384306644], 2.11506273727882),
        "pos_emb.weight": ([0.8607114608325495, -0.1927983584825544], 2.1399433903943),
        "to_logits.bias": ([0.07613456421533814, -0.10436974667060615], 0.362235406776312),
        "transformer.attn_resampling_post_valley.layers.0.0.fn.to_kv.weight": (None, 0.327874185482062),
        "transformer.valley_transformer.pre_transformer.layers.0.0.fn.to_q.weight": (
            [1.2744806625117973e-4, -1.8268444471359759e-4],
            0.00998302060302139,
        ),
    }
    for loss, grads in ((theirs.item(), their_gradients), (value, our_gradients)):
        np.testing.assert_allclose(loss, 2.4241332170714456, rtol=0, atol=1e-14)
        for key, (first, norm) in expected.items():
            if first is not None:
                np.testing.assert_allclose(grads[key].ravel()[:2], first, rtol=0, atol=2e-13, err_msg=key)
            np.testing.assert_allclose(np.linalg.norm(grads[key]), norm, rtol=1e-12, err_msg=key)
        # One key per query: its softmax is 1, whatever the query, which is the normed x.
        single_key = "transformer.attn_resampling_post_valley.layers.0.0."
        for name in ("fn.to_q.weight", "norm.weight", "norm.bias"):
            assert not grads[single_key + name].any(), name
        dead = {key for key, gradient in grads.items() if not gradient.any()}
        inner = single_key.replace("transformer.", "transformer.valley_transformer.", 1)
        assert dead == {
            p + n for p in (single_key, inner) for n in ("fn.to_q.weight", "norm.weight", "norm.bias")
        }


def test_golden_h11_embeddings() -> None:
    config = jm.HourglassTransformerConfig(dim=8, depth=(1, 1, 1), heads=2, dim_head=4)
    reference = fill(torch_reference.HourglassTransformer(8, depth=(1, 1, 1), heads=2, dim_head=4))
    i = np.arange(1, 97)
    x = np.sin(0.1 * (i * i)).reshape(2, 6, 8)
    first = [
        4.59533740779294,
        -4.80554962402953,
        -6.15450561250665,
        3.93396915769733,
        -2.60709933647694,
        -0.544525538794,
    ]
    for out in outputs(reference, ours_with(config, reference), x):
        np.testing.assert_allclose(out.ravel()[:6], first, rtol=0, atol=2e-14)
        actual = [out.ravel()[-1], out.mean(), out.std()]
        np.testing.assert_allclose(
            actual, [-0.0363283898424236, -0.0665985131297979, 3.68635285799992], rtol=0, atol=2e-14
        )


def test_golden_h12_greedy_generation() -> None:
    reference, ours = golden_pair(154, **H1)
    start = ids(2, 4)
    expected = [
        [10, 10, 10, 3, 0, 0, 0, 0, 0, 6, 6, 6, 6, 6, 6, 6, 0, 0, 3, 0],
        [10] * 14 + [3, 0, 0, 0, 0, 0],
    ]
    wrapped = torch_reference.AutoregressiveWrapper(reference)
    for options in ({}, {"temperature": 0.0, "filter_thres": 0.5}):
        assert wrapped.generate(torch.from_numpy(start), 20, **options).tolist() == expected
        assert generate(ours, jnp.asarray(start), 20, **options).tolist() == expected
    # A prompt longer than the window.
    longer = np.concatenate([ids(2, 17), start], axis=1)
    theirs = wrapped.generate(torch.from_numpy(longer), 18)
    assert generate(ours, jnp.asarray(longer), 18).tolist() == theirs.tolist()
