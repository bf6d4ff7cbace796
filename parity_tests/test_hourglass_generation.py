"""Sampling and the next-token loss beside the package, also where the package fails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hourglass_transformer_pytorch.autoregressive_wrapper import AutoregressiveWrapper

import jaxmodels as jm
import torch_reference
from jaxmodels.generation import generate
from parity_tests.hourglass_pairs import H1, SIZES, fill, golden_pair, ids, loss_and_gradients, ours_with


def test_end_of_sequence() -> None:
    """The package raises NameError; without that it would count an end-of-sequence token in the prompt."""
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
        assert (
            generate(ours, jnp.asarray(start), 20, eos_token=eos, pad_value=7).tolist() == expected.tolist()
        )


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
    tokens = generate(ours, jnp.tile(jnp.asarray(start), (b, 1)), 1, **options, rngs=nnx.Rngs(0))
    frequencies = np.bincount(np.asarray(tokens)[:, 0], minlength=11) / b
    np.testing.assert_allclose(frequencies, expected, rtol=0, atol=5 * 0.5 / b**0.5)
    assert not frequencies[expected == 0].any()


def test_generation_where_the_package_fails() -> None:
    reference, ours = golden_pair(154, **H1)
    start = torch.from_numpy(ids(2, 4))
    few_tokens = {"num_tokens": 5}  # int(0.1 · 5) = 0 tokens pass the filter
    few = fill(torch_reference.HourglassTransformerLM(**SIZES | few_tokens, **H1), 3)
    few_start = torch.from_numpy(ids(2, 4, 5))
    with pytest.raises(RuntimeError):
        AutoregressiveWrapper(few).generate(few_start, 4)
    expected = torch_reference.AutoregressiveWrapper(few).generate(few_start, 4).tolist()
    few_ours = ours_with(jm.HourglassTransformerLMConfig(**SIZES | few_tokens, **H1), few)
    assert generate(few_ours, jnp.asarray(few_start), 4).tolist() == expected

    wrapped = AutoregressiveWrapper(reference).train()
    with pytest.raises(RuntimeError):
        wrapped.generate(start, 4, temperature=0)
    assert not wrapped.training  # the package stays in evaluation mode
    ours_wrapped = torch_reference.AutoregressiveWrapper(reference).train()
    with pytest.raises(IndexError):
        ours_wrapped.generate(start + 100, 4)
    assert ours_wrapped.training
    assert reference.training
    assert ours_wrapped.generate(start, 0).shape == generate(ours, jnp.asarray(start), 0).shape == (2, 0)


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
