"""benchmarks.mistakes: mistakes are planted where they apply, found, and counted."""

import json
from pathlib import Path

import pytest

from benchmarks.mistakes import report
from benchmarks.mistakes.__main__ import Options, main
from benchmarks.mistakes.cases import Case, mistakes_of, run
from benchmarks.mistakes.five import REPLACEMENTS, Replacement, planted
from benchmarks.mistakes.kinds import WORDS
from jaxmodels.models.glom import GroupedFeedForward


def test_a_planted_mistake_is_found_and_named() -> None:
    found = run(Case("lstm", "deviation divided by n", 0))
    assert (found.verdict, found.place, found.located) == ("different", "(model)", True)
    assert found.diagnosed, found.diagnosis
    assert found.outputs_differ


def test_every_mistake_that_can_be_planted_has_words() -> None:
    kinds = {*mistakes_of("lstm"), *mistakes_of("gpt2")}
    assert len(kinds) > 60
    assert kinds <= set(WORDS)


@pytest.mark.parametrize("mistake", REPLACEMENTS, ids=lambda one: f"{one.model}: {one.kind}")
def test_replacements_still_fit_the_source(mistake: Replacement) -> None:
    before = GroupedFeedForward.__call__
    with planted(mistake):
        assert (GroupedFeedForward.__call__ is before) == ("GroupedFeedForward" not in mistake.where)
    assert GroupedFeedForward.__call__ is before
    assert mistake.kind in WORDS


def test_replacement_without_its_source() -> None:
    with (
        pytest.raises(ValueError, match="no longer contains 'nothing of this kind'"),
        planted(REPLACEMENTS[0]._replace(old="nothing of this kind")),
    ):
        pass


def test_the_table_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {
        "architecture": "a",
        "kind": "k",
        "place": "p",
        "detail": "d",
        "diagnosis": None,
        "seconds": 1.0,
        "effect": 0.1,
    }
    wrong |= {
        "closeness": 2e-3,
        "divergence": 0.0,
        "outputs_differ": True,
        "located": True,
        "diagnosed": False,
    }
    right = wrong | {"kind": None, "verdict": "equal", "closeness": 1e-7, "outputs_differ": False}
    cases = {"a": wrong | {"verdict": "different"}, "b": wrong | {"verdict": "equal"}, "c": right}
    cases["d"] = wrong | {"verdict": "equal", "effect": 1e-9}
    results = {"environment": "Here.", "cases": cases}
    table = report.table(results)
    assert "| allclose, 0.01 | 0 of 2 (0.0%) | – | – | 0 of 1 (0.0%) |" in table
    assert "| allclose, 0.001 | 2 of 2 (100.0%) |" in table
    assert "| jaxmodels compare | 1 of 2 (50.0%) | 2 of 2 (100.0%) | 0 of 2 (0.0%) | 0 of 1 (0.0%) |" in table
    assert "1 more mistake has no effect" in table
    report.figure(results)

    path = tmp_path / "mistakes.json"
    path.write_text(json.dumps(results))
    main(Options(output=path, limit=0, controls=0, architectures=("lstm",)))
    assert "not diagnosed, detected: a, k at p" in capsys.readouterr().out


def test_unknown_architecture(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"architectures must be of bert, .*; got bart"):
        main(Options(output=tmp_path / "none.json", architectures=("bart",)))
