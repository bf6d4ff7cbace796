"""Hourglass Transformer beyond the rows: goldens, generation, quirks, weights, initialisation.

| hazard | caught by |
| --- | --- |
| GELU, LayerNorm epsilon, normed context, un-normed self, k/v order, head split, scale | goldens H1–H9, rows |
| LayerNorm's variance far from zero | `test_norm_far_from_zero_in_float32`, row `embeddings` |
| -inf for -finfo.max, zeros for a row of masked keys | goldens H4–H6, H9, row `mask of nothing` |
| shift, residual, mask shift, padding side, masked mean, any/all | goldens H1–H6, mask rows |
| tile/repeat, (d s)/(s d), resampler context | goldens H1, H3, H6, rows |
| leakage, wrong prefix | tests/models/test_hourglass.py |
| ids and lengths out of range | tests/models/test_hourglass.py, `test_same_errors` |
| top-k ties, drawn tokens | `test_draws_follow_the_filtered_distribution`, `test_same_draws_as_the_package` |
| one compiled loop for all lengths | golden H12 crosses max_seq_len; tests/models/test_hourglass.py counts traces |
"""

from dataclasses import asdict

import hourglass_transformer_pytorch as package
import hourglass_transformer_pytorch.hourglass_transformer_pytorch as published
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hourglass_transformer_pytorch.autoregressive_wrapper import AutoregressiveWrapper
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmodels as jm
import torch_reference
from jaxmodels.convert.hourglass import infer_config
from jaxmodels.generation import generate, next_token_loss
from parity_tests.cases.hourglass import BARE, LM  # the import also repairs the package's missing `math`
from parity_tests.harness import AS_USERS, assert_init_matches, assert_layout_matches, assert_round_trip


SIZES = {"num_tokens": 11, "dim": 8, "max_seq_len": 16, "heads": 2, "dim_head": 4}
H1 = {"depth": (1, (1, 2, 1), 1), "shorten_factor": (2, 3)}
H4 = {"depth": (1, 1, 1), "shorten_factor": 3, "causal": False}


def fill(model: torch.nn.Module, offset: int = 0) -> torch.nn.Module:
    """The contract's weights, in float64."""
    with torch.no_grad():
        for k, (name, p) in enumerate(model.double().named_parameters()):
            i = torch.arange(1, p.numel() + 1)
            wave = 0.3 * torch.sin(0.1 * (i * i).double() + k + offset)
            p.copy_((wave + name.endswith(("norm.weight", "norm_out.weight"))).view_as(p))
    return model


def ids(b: int, n: int, v: int = 11, low: int = 0) -> np.ndarray:
    j = np.arange(b * n)
    return (low + (7 * j * j + 3 * j + 1) % (v - low)).reshape(b, n)


def golden_pair(offset: int = 0, **changes) -> tuple[torch.nn.Module, nnx.Module]:
    reference = fill(torch_reference.HourglassTransformerLM(**SIZES, **changes), offset)
    return reference, ours_with(jm.HourglassTransformerLMConfig(**SIZES, **changes), reference)


def ours_with(config, reference: torch.nn.Module) -> nnx.Module:
    cls = {
        jm.HourglassTransformerLMConfig: jm.HourglassTransformerLM,
        jm.HourglassTransformerConfig: jm.HourglassTransformer,
    }[type(config)]
    return jm.load_state_dict(nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0))), reference.state_dict())


loss_and_gradients = jax.jit(jax.value_and_grad(next_token_loss))


@jax.jit
def forward(model: nnx.Module, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    return model(x, mask)


def outputs(reference: torch.nn.Module, ours: nnx.Module, x: np.ndarray, mask: np.ndarray | None = None):
    theirs = reference(torch.from_numpy(x), mask=None if mask is None else torch.from_numpy(mask))
    return theirs.detach().numpy(), np.asarray(forward(ours, x, mask))


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
        assert generate(ours, start, 20, **options).tolist() == expected
    # A prompt longer than the window.
    longer = np.concatenate([ids(2, 17), start], axis=1)
    theirs = wrapped.generate(torch.from_numpy(longer), 18)
    assert generate(ours, longer, 18).tolist() == theirs.tolist()


def test_end_of_sequence() -> None:
    """The package's branch raises NameError, and would have counted an eos in the prompt."""
    reference, ours = golden_pair(154, **H1)
    start = torch.from_numpy(ids(2, 4))
    with pytest.raises(NameError, match="is_eos_tokens"):
        AutoregressiveWrapper(reference).generate(start, 20, eos_token=10)
    wrapped = torch_reference.AutoregressiveWrapper(reference, pad_value=7)
    free = wrapped.generate(start, 20).numpy()
    for eos, length in (
        (3, 15),
        (10, 1),
        (2, 20),
        (6, 20),
    ):  # 3 ends both rows, 6 only the first, 2 is in a prompt
        expected = free[:, :length].copy()
        for sequence in expected:
            positions = np.flatnonzero(sequence == eos)
            if len(positions):
                sequence[positions[0] + 1 :] = 7
        assert wrapped.generate(start, 20, eos_token=eos).tolist() == expected.tolist()
        assert generate(ours, start.numpy(), 20, eos_token=eos, pad_value=7).tolist() == expected.tolist()


def test_same_draws_as_the_package() -> None:
    """The same seed draws the same tokens from PyTorch's generator."""
    reference = fill(torch_reference.HourglassTransformerLM(**SIZES, **H1))
    for thres in (0.0, 0.5, 0.8):
        drawn = []
        for wrapper in (AutoregressiveWrapper, torch_reference.AutoregressiveWrapper):
            torch.manual_seed(3)
            drawn.append(
                wrapper(reference).generate(
                    torch.from_numpy(ids(2, 4)), 8, filter_thres=thres, temperature=0.7
                )
            )
        assert drawn[0].tolist() == drawn[1].tolist()
        assert len(set(drawn[0].ravel().tolist())) > 1


def test_draws_follow_the_filtered_distribution() -> None:
    reference, ours = golden_pair(**H1)
    start, b, temperature = ids(1, 5), 4000, 0.8
    logits = reference(torch.from_numpy(start))[0, -1].detach().numpy() / temperature
    kept = np.argsort(logits)[-5:]
    expected = np.zeros(11)
    expected[kept] = np.exp(logits[kept]) / np.exp(logits[kept]).sum()
    options = {"temperature": temperature, "filter_thres": 0.5}
    tokens = generate(ours, np.tile(start, (b, 1)), 1, **options, rngs=nnx.Rngs(0))
    frequencies = np.bincount(np.asarray(tokens)[:, 0], minlength=11) / b
    np.testing.assert_allclose(frequencies, expected, rtol=0, atol=5 * 0.5 / b**0.5)
    assert not frequencies[expected == 0].any()


def test_generation_where_the_package_fails() -> None:
    reference, ours = golden_pair(154, **H1)
    start = torch.from_numpy(ids(2, 4))
    small = {"num_tokens": 5}  # int(0.1 · 5) = 0 tokens pass the filter
    narrow = fill(torch_reference.HourglassTransformerLM(**SIZES | small, **H1), 3)
    narrow_start = torch.from_numpy(ids(2, 4, 5))
    with pytest.raises(RuntimeError):
        AutoregressiveWrapper(narrow).generate(narrow_start, 4)
    expected = torch_reference.AutoregressiveWrapper(narrow).generate(narrow_start, 4).tolist()
    narrow_ours = ours_with(jm.HourglassTransformerLMConfig(**SIZES | small, **H1), narrow)
    assert generate(narrow_ours, narrow_start.numpy(), 4).tolist() == expected

    wrapped = AutoregressiveWrapper(reference).train()
    with pytest.raises(RuntimeError):
        wrapped.generate(start, 4, temperature=0)
    assert not wrapped.training  # the package stays in evaluation mode
    ours_wrapped = torch_reference.AutoregressiveWrapper(reference).train()
    with pytest.raises(IndexError):
        ours_wrapped.generate(start + 100, 4)
    assert ours_wrapped.training
    assert reference.training
    assert ours_wrapped.generate(start, 0).shape == generate(ours, start.numpy(), 0).shape == (2, 0)


def test_loss_without_targets_is_nan_with_zero_gradient() -> None:
    reference, ours = golden_pair(**H1)
    tokens = np.zeros((2, 13), int)
    theirs = torch_reference.AutoregressiveWrapper(reference)(torch.from_numpy(tokens))
    theirs.backward()
    value, gradients = loss_and_gradients(ours, tokens)
    assert np.isnan(theirs.item())
    assert np.isnan(value)
    assert not any(p.grad.numpy().any() for p in reference.parameters() if p.grad is not None)
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(gradients))


def test_package_without_math_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """What parity_tests/cases/hourglass.py repairs."""
    model = package.HourglassTransformerLM(**SIZES, **H1)
    monkeypatch.delattr(published, "math")
    with pytest.raises(NameError, match="math"):
        model(torch.from_numpy(ids(2, 11)))


LAYOUTS = [
    replaced
    for base, changes in (
        (LM, {"depth": (1, (1, 1, 0), 2), "shorten_factor": (2, 3), "updown_sample_type": "linear"}),
        (LM, {"depth": 2, "shorten_factor": None}),
        (LM, {"depth": (2, 0, 0), "attn_resampling": False}),
        (BARE, {"depth": (1, (0, 1, 1), 1), "norm_out": True}),
    )
    for replaced in [type(base)(**asdict(base) | changes)]
]


def builders(config):
    """Ours, the reference and the package for one configuration."""
    name = type(config).__name__.removesuffix("Config")
    return (
        lambda seed=0: getattr(jm, name)(config, rngs=nnx.Rngs(seed)),
        lambda: getattr(torch_reference, name)(**asdict(config)),
        lambda: getattr(package, name)(**asdict(config)),
    )


@pytest.mark.parametrize("config", LAYOUTS, ids=["nested linear", "integer", "no resampling", "embeddings"])
def test_weights(config) -> None:
    ours, reference, theirs = builders(config)
    assert_layout_matches(reference(), theirs())
    assert_round_trip(ours, theirs())


def test_number_of_parameters() -> None:
    config = jm.HourglassTransformerLMConfig(
        **SIZES | {"dim_head": 3, "updown_sample_type": "linear"},
        depth=(1, (1, 1, 0), 2),
        shorten_factor=(2, 3),
    )
    ours, reference, _ = builders(config)
    assert sum(p.numel() for p in reference().parameters()) == 8083
    assert sum(p.size for p in jax.tree.leaves(nnx.state(nnx.eval_shape(ours)))) == 8083
    assert len(golden_pair(**H1)[0].state_dict()) == 126


def test_wrapped_checkpoint() -> None:
    """A checkpoint of the package's wrapper loads, and its own keys come back without the prefix."""
    ours, reference, _ = builders(LM)
    wrapped = torch_reference.AutoregressiveWrapper(reference())
    AutoregressiveWrapper(reference()).load_state_dict(wrapped.state_dict(), strict=True)
    back = jm.to_state_dict(jm.load_state_dict(nnx.eval_shape(ours), wrapped.state_dict()))
    assert {"net." + key for key in back} == set(wrapped.state_dict())


def test_infer_config() -> None:
    hidden = {"causal", "shorten_factor", "max_seq_len"}
    for config in LAYOUTS:
        arrays = {k: v.numpy() for k, v in builders(config)[1]().state_dict().items()}
        inferred = infer_config(arrays, {"heads": 2})
        for name, value in inferred.items():
            assert value == getattr(config, name), name
        missing = {name for name in asdict(config) if name not in inferred}
        assert missing <= hidden | {"attn_resampling", "updown_sample_type"}
        if getattr(config, "updown_sample_type", "") == "linear":
            assert inferred["shorten_factor"] == (2, 3)
        with pytest.raises(
            ValueError, match=r"heads · dim_head = 6, which is not that of the defaults, 8 · 64"
        ):
            infer_config(arrays, {})
    assert infer_config(arrays, {"dim_head": 3, "causal": True})["heads"] == 2
    assert infer_config(arrays, {"dim_head": 3, "causal": True})["causal"] is True
    default = {
        k: v.numpy() for k, v in torch_reference.HourglassTransformer(4, depth=(1, 0, 0)).state_dict().items()
    }
    inferred = infer_config(default, {})
    assert (inferred["heads"], inferred["dim_head"], inferred["dim"]) == (8, 64, 4)


def test_initialisation_matches() -> None:
    config = jm.HourglassTransformerLMConfig(
        num_tokens=32, dim=24, max_seq_len=20, depth=(1, 1, 0), shorten_factor=2, heads=3, dim_head=10,
        updown_sample_type="linear",
    )  # fmt: skip
    ours, _, theirs = builders(config)
    assert_init_matches(ours, theirs)


@pytest.mark.parametrize("config", LAYOUTS, ids=["nested linear", "integer", "no resampling", "embeddings"])
def test_reference_draws_the_same_initial_weights(config) -> None:
    _, reference, theirs = builders(config)
    torch.manual_seed(5)
    expected = theirs().state_dict()
    torch.manual_seed(5)
    assert all(torch.equal(value, expected[key]) for key, value in reference().state_dict().items())


def test_reference_transformer_matches_the_package() -> None:
    """Options and inputs of the inner class that neither wrapper passes on."""
    for options in ({"norm_out": True, "ff_mult": 2}, {"causal": True}):
        sizes = {"depth": 2, "heads": 2, "dim_head": 3, "attn_dropout": 0.3, "ff_dropout": 0.2} | options
        theirs = published.Transformer(6, **sizes).double()
        mine = torch_reference.hourglass.Transformer(6, **sizes).double()
        assert_layout_matches(mine, theirs)
        x, context = torch.randn(2, 4, 6).double(), torch.randn(2, 5, 6).double()
        mask = torch.tensor([[True, True, False, True, False], [True] * 5])
        for train in (False, True):
            torch.manual_seed(0)
            expected = theirs.train(train)(x, context=context, mask=mask)
            torch.manual_seed(0)
            actual = mine.train(train)(x, context=context, mask=mask)
            np.testing.assert_allclose(actual.detach(), expected.detach(), rtol=0, atol=1e-12)


WRONG = [
    {"num_tokens": 0}, {"dim": 0}, {"max_seq_len": 0}, {"heads": 0}, {"dim_head": 0}, {"dim_head": 2.5},
    {"depth": (1, 1)}, {"depth": (1, -1, 1)}, {"depth": True}, {"depth": (1, True, 1)}, {"depth": (1, (1, 1), 1)},
    {"depth": -1, "shorten_factor": None}, {"depth": 1}, {"depth": "111"}, {"shorten_factor": None},
    {"shorten_factor": 0}, {"shorten_factor": -2}, {"shorten_factor": 2.0}, {"shorten_factor": ()},
    {"shorten_factor": (2, 3)}, {"shorten_factor": (0,)}, {"depth": (1, (1, 1, 1), 1), "shorten_factor": (2,)},
    {"updown_sample_type": "mean"}, {"depth": 1, "shorten_factor": None, "updown_sample_type": "mean"},
    {"causal": "no"}, {"attn_resampling": 1},
]  # fmt: skip


@pytest.mark.parametrize("changes", WRONG, ids=str)
def test_same_errors(changes) -> None:
    """Both sides refuse the same arguments, with the same words."""
    arguments = asdict(LM) | changes
    with pytest.raises(ValueError, match="must") as theirs:
        torch_reference.HourglassTransformerLM(**arguments)
    with pytest.raises(ValueError, match="must") as mine:
        jm.HourglassTransformerLMConfig(**arguments)
    assert str(mine.value) == str(theirs.value)


@pytest.mark.parametrize(
    ("x", "mask", "message"),
    [
        (np.zeros((2, 0), int), None, r"must have at least one position"),
        (np.zeros((2, 11), int), None, r"must have at most max_seq_len=10"),
        (np.zeros((2, 4)), None, r"must be integer ids; got .*float64"),
        (np.zeros(4, int), None, r"must have shape \(b, n\)"),
        (
            np.zeros((2, 4), int),
            np.ones((2, 3), bool),
            r"mask must have shape \(2, 4\); got mask\.shape=\(2, 3\)",
        ),
        (np.zeros((2, 4), int), np.ones((2, 4), int), r"mask must be bool"),
    ],
)
def test_same_call_errors(x, mask, message) -> None:
    ours, reference, _ = builders(LM)
    with pytest.raises(ValueError, match=message):
        reference()(torch.from_numpy(x), None if mask is None else torch.from_numpy(mask))
    with pytest.raises(ValueError, match=message):
        ours()(x, mask)


def test_what_the_package_accepts() -> None:
    """Spellings of the same model: lists, numpy integers (refused by the package), falsy factors."""
    same = [
        {"depth": [1, [1, 2, 1], 1], "shorten_factor": [2, 3]},
        {"depth": (np.int64(1), (1, 2, 1), 1), "shorten_factor": (2, np.int64(3))},
    ]
    for spelling in same:
        assert jm.HourglassTransformerLMConfig(**SIZES, **spelling) == jm.HourglassTransformerLMConfig(
            **SIZES, **H1
        )
        torch_reference.HourglassTransformerLM(**SIZES, **spelling).load_state_dict(
            golden_pair(**H1)[0].state_dict()
        )
    for nothing in (None, 0, (), []):
        config = jm.HourglassTransformerLMConfig(**SIZES, depth=1, shorten_factor=nothing)
        assert config.shorten_factor is None
        torch_reference.HourglassTransformerLM(**SIZES, depth=1, shorten_factor=nothing)
    with pytest.raises(ValueError, match=r"depth must be \(pre, valley, post\); got depth=2"):
        jm.HourglassTransformerConfig(dim=4, depth=2, shorten_factor=None)
    with pytest.raises(ValueError, match=r"depth must be \(pre, valley, post\); got depth=2"):
        torch_reference.HourglassTransformer(4, depth=2, shorten_factor=None)


def test_norm_far_from_zero_in_float32() -> None:
    config = jm.HourglassTransformerConfig(
        dim=64, depth=(0, 0, 0), shorten_factor=1, attn_resampling=False, norm_out=True, heads=1, dim_head=1
    )
    reference = torch_reference.HourglassTransformer(**asdict(config))
    x = (100 + 0.01 * np.random.default_rng(0).normal(size=(2, 8, 64))).astype(np.float32)
    theirs, mine = outputs(reference, ours_with(config, reference), x)
    # The residual doubles x to 200 ± 0.02; a mean rounded by four units in the last place moves the output so far:
    tolerance = 4 * float(np.spacing(np.float32(200))) / 0.02
    exact = 2 * x.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    for out in (theirs, mine):
        np.testing.assert_allclose(out, exact, rtol=0, atol=tolerance)


def test_full_optimisation_agrees() -> None:
    reference, ours = golden_pair(**H1)
    theirs = reference(torch.from_numpy(ids(2, 11))).detach().numpy()
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        actual = np.asarray(
            jax.jit(compiler_options=AS_USERS)(lambda model, x: model(x))(ours, jnp.asarray(ids(2, 11)))
        )
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    np.testing.assert_allclose(actual, theirs, rtol=0, atol=1e-13)


def depths(levels: int) -> st.SearchStrategy:
    """Depths with exactly `levels` nested hourglasses."""
    count = st.integers(0, 1)
    return count if levels == 0 else st.tuples(count, depths(levels - 1), count)


@st.composite
def configurations(draw) -> jm.HourglassTransformerLMConfig:
    levels = draw(st.integers(0, 2))
    factors = tuple(draw(st.integers(1, 4)) for _ in range(levels))
    return jm.HourglassTransformerLMConfig(
        num_tokens=draw(st.integers(1, 7)),
        dim=draw(st.integers(1, 6)),
        max_seq_len=9,
        depth=draw(depths(levels)),
        shorten_factor=factors or None,
        heads=draw(st.integers(1, 3)),
        dim_head=draw(st.integers(1, 3)),
        attn_resampling=draw(st.booleans()),
        updown_sample_type=draw(st.sampled_from(["naive", "linear"])),
        causal=draw(st.booleans()),
    )


@settings(max_examples=8, deadline=None, derandomize=True)
@given(configurations(), st.integers(1, 9), st.booleans())
def test_random_configurations(config, n, masked) -> None:
    torch.manual_seed(1)
    reference = torch_reference.HourglassTransformerLM(**asdict(config)).double()
    rng = np.random.default_rng(2)
    mask = rng.random((2, n)) < 0.6 if masked else None
    theirs, mine = outputs(
        reference, ours_with(config, reference), rng.integers(0, config.num_tokens, (2, n)), mask
    )
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-9)
