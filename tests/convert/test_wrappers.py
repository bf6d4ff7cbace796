"""Entries and prefixes around weights are removed, which is logged, and nothing else changes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import jaxmodels as jm
from jaxmodels.convert.wrappers import choose_entry, strip_prefixes
from tests.convert import small_models


StateDict = dict[str, np.ndarray]


@pytest.fixture
def state_dict() -> StateDict:
    return jm.to_state_dict(small_models.filled("Glom"))


@pytest.fixture
def average(state_dict: StateDict) -> StateDict:
    return {key: array + 1 for key, array in state_dict.items()}


def prefixed(prefix: str, state_dict: StateDict) -> StateDict:
    return {prefix + key: array for key, array in state_dict.items()}


def loaded(content: Any, name: str = "Glom", **options: Any) -> dict:
    return small_models.bits(
        jm.to_state_dict(jm.load_state_dict(small_models.shapes(name), content, **options))
    )


# -- prefixes


@pytest.mark.parametrize("name", small_models.MODELS)
@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module._orig_mod.", "student.generator."],
)
def test_prefixes(name: str, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    state_dict = jm.to_state_dict(small_models.filled(name))
    assert loaded(prefixed(prefix, state_dict), name) == small_models.bits(state_dict)
    (message,) = caplog.messages
    assert message.startswith("removed from the keys: '")
    assert all(part in message for part in prefix.split("."))


def test_nothing_is_said_where_nothing_is_removed(
    state_dict: StateDict, caplog: pytest.LogCaptureFixture
) -> None:
    loaded(state_dict)
    loaded(
        prefixed("net.", jm.to_state_dict(small_models.filled("HourglassTransformerLM"))),
        "HourglassTransformerLM",
    )
    assert caplog.messages == []


@pytest.mark.parametrize(
    "part", ["_orig_mod.", "module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."]
)
def test_a_wrapped_part_of_a_model(state_dict: StateDict, part: str) -> None:
    wrapped = {key.replace("bottom_up.", f"bottom_up.{part}"): array for key, array in state_dict.items()}
    assert loaded(wrapped) == small_models.bits(state_dict)


def test_an_average_of_models(state_dict: StateDict, caplog: pytest.LogCaptureFixture) -> None:
    """torch.optim.swa_utils.AveragedModel counts beside its module."""
    content = {"n_averaged": np.int64(3), **prefixed("module.", state_dict)}
    assert loaded(content) == small_models.bits(state_dict)
    assert caplog.messages == ["removed from the keys: 'module.', 'n_averaged'"]


def test_two_copies_behind_prefixes(
    state_dict: StateDict, average: StateDict, caplog: pytest.LogCaptureFixture
) -> None:
    both = {**prefixed("ema_model.", average), **prefixed("model.", state_dict)}
    assert loaded(both) == small_models.bits(state_dict)
    assert caplog.messages == [
        "removed from the keys: 'model.'; also there: 'ema_model', chosen with entry= (--entry)"
    ]
    assert loaded(both, entry="ema_model") == small_models.bits(average)
    with pytest.raises(ValueError, match="entry must be one of 'ema_model', 'model'; got 'ema'"):
        loaded(both, entry="ema")
    others = {**prefixed("left.", average), **prefixed("right.", state_dict)}
    with pytest.raises(
        ValueError, match=r"several copies of the weights: 'left', 'right'; choose one with entry="
    ):
        loaded(others)
    beside = {**state_dict, **prefixed("ema.", average)}
    assert loaded(beside) == small_models.bits(state_dict)
    assert loaded(beside, entry="ema") == small_models.bits(average)


def test_what_is_left_is_refused(state_dict: StateDict) -> None:
    content = {**prefixed("model.", state_dict), "loss.weight": np.ones(3)}
    del content["model.init_levels"]
    with pytest.raises(
        ValueError, match=r"not fit Glom\n  missing .*: init_levels\n  not in the model: loss.weight$"
    ):
        loaded(content)


@pytest.mark.parametrize("change", [lambda key: f"a.{key}.b", lambda key: key.replace(".", "/")])
def test_keys_of_another_kind_stay_as_they_are(change: Callable, state_dict: StateDict) -> None:
    with pytest.raises(ValueError, match=f"\n  not in the model: {change('pos_emb.weight')}"):
        loaded({change(key): array for key, array in state_dict.items()})


def test_two_keys_never_become_one() -> None:
    content = {"module.a": 1, "a": 2}
    assert strip_prefixes(content, {"b"}) == content
    assert strip_prefixes({"module.b": 1, "_orig_mod.b": 2}, {"b"}) == {"module.b": 1, "_orig_mod.b": 2}


# -- entries


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s, e: {"state_dict": s},
        lambda s, e: {"model": s, "epoch": 3, "scale": np.ones(1)},
        lambda s, e: {"model": s, "ema": e},
        lambda s, e: {
            "state_dict": s,
            "state_dict_ema": e,
            "optimizer": {"state": {0: {"exp_avg": np.ones(3)}}},
        },
        lambda s, e: {"checkpoint": {"model": s, "model_ema": e}},
        lambda s, e: {"model": prefixed("module.", s)},
        lambda s, e: {"anything": s},
        lambda s, e: {"ema": e, "anything": s},
        lambda s, e: {"ema": s},
        lambda s, e: {"discriminator": e, "net": s},
    ],
)
def test_entries(
    wrap: Callable, state_dict: StateDict, average: StateDict, caplog: pytest.LogCaptureFixture
) -> None:
    assert loaded(wrap(state_dict, average)) == small_models.bits(state_dict)
    assert caplog.messages[0].startswith("read from its entry '")


def test_an_entry_is_chosen(
    state_dict: StateDict, average: StateDict, caplog: pytest.LogCaptureFixture
) -> None:
    content = {"train": {"model": state_dict, "ema": {"module": average}}}
    assert loaded(content, entry="train/ema/module") == small_models.bits(average)
    assert caplog.messages == []
    assert loaded(content) == small_models.bits(state_dict)
    assert caplog.messages == [
        "read from its entry 'train/model'; also there: 'train/ema/module', chosen with entry= (--entry)"
    ]
    with pytest.raises(
        ValueError, match="entry must be one of 'train/model', 'train/ema/module'; got entry='ema'"
    ):
        loaded(content, entry="ema")


def test_several_entries_without_a_usual_name(state_dict: StateDict) -> None:
    with pytest.raises(ValueError, match=r"there are several state_dicts: 'a', 'b'; choose one with entry="):
        loaded({"a": state_dict, "b": state_dict})


def test_an_entry_where_there_is_none(state_dict: StateDict) -> None:
    with pytest.raises(ValueError, match="entry must be one of none: there is only one model; got 'ema'"):
        loaded(state_dict, entry="ema")


def test_what_is_no_state_dict_is_no_entry() -> None:
    content = {"optimizer": {"lr": 1.0}, "deep": {"a": {"b": {"c": {"w": np.ones(1)}}}}, "empty": {}}
    assert choose_entry(content) == (content, None)
