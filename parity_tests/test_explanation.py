"""What is said of a verdict: by assert_same, on the console, and for each kind of difference."""

from dataclasses import replace
from typing import get_args

import pytest
from rich.console import Console

from jaxmodels.compare import assert_same, print_table
from jaxmodels.compare.divergence import Kind
from jaxmodels.compare.explanation import NEXT_STEPS, explain, next_step
from parity_tests import sample_comparisons as samples
from parity_tests.small_pairs import net_pair


MISTAKE = "nnx.gelu uses the tanh form; approximate=False removes the difference"


def test_assert_same() -> None:
    assert assert_same(net_pair(), gradients=False).verdict == "equal"
    with pytest.raises(AssertionError) as failure:
        assert_same(net_pair(approximate=True), gradients=False)
    first, layer, difference, *_, last = str(failure.value).splitlines()
    assert first == "net differs from PyTorch in float32"
    assert layer == "  layer: (model)"
    assert difference.startswith("  difference: in the code of (model) after body.0, before body.2 (error ")
    assert last.startswith("  next: ")


def test_assert_same_names_the_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(samples.different(), diagnosis=MISTAKE)
    monkeypatch.setattr("jaxmodels.compare.testing.compare", lambda pair: wrong)
    with pytest.raises(
        AssertionError, match=f"\n  mistake: {MISTAKE}\n  next: make the change in transformer"
    ):
        assert_same(net_pair())
    monkeypatch.setattr("jaxmodels.compare.testing.compare", lambda pair: samples.undecided())
    with pytest.raises(
        AssertionError, match=r"^glom cannot be judged in float32\n  cannot be judged: output: "
    ):
        assert_same(net_pair())


def test_the_console_names_the_mistake() -> None:
    console = Console(record=True, width=100)
    print_table([replace(samples.different(), diagnosis=MISTAKE), samples.equal()], console)
    printed = console.export_text()
    assert f"\n  mistake: {MISTAKE}\n  next: " in printed
    assert printed.count("next: ") == 1


def test_every_kind_of_difference_has_a_next_step() -> None:
    assert NEXT_STEPS.keys() == set(get_args(Kind))
    wrong = replace(samples.different(), diagnosis=None)
    assert wrong.divergence is not None
    for kind in get_args(Kind):
        sentence = next_step(replace(wrong, divergence=replace(wrong.divergence, kind=kind)))
        assert sentence
        assert "{" not in sentence
    assert explain(samples.equal()) == {}
