"""Every option and every mode of every model has a parity row."""

from collections import defaultdict
from dataclasses import fields

from parity_tests.cases import CASES, MODES


def test_every_option_is_varied() -> None:
    values = defaultdict(set)
    for case in CASES:
        for field in fields(case.config):
            values[type(case.config).__name__, field.name].add(repr(getattr(case.config, field.name)))
    unvaried = sorted(".".join(key) for key, seen in values.items() if len(seen) < 2)
    assert not unvaried, f"no parity row varies {unvaried}"


def test_every_mode_has_a_row() -> None:
    seen = defaultdict(set)
    for case in CASES:
        seen[case.name.partition("/")[0]] |= case.options
    missing = {model: modes - seen[model] for model, modes in MODES.items() if modes - seen[model]}
    assert not missing, f"no parity row runs {missing}"


def test_row_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
