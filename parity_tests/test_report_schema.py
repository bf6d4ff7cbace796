"""report.json is what its JSON Schema says, also where numbers are not finite and pairs fail."""

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import get_args

import jsonschema
import pytest

from jaxmodels.compare import report
from jaxmodels.compare.divergence import Kind
from jaxmodels.compare.noise import Check
from jaxmodels.compare.outcome import Failure
from jaxmodels.compare.places import Place
from jaxmodels.compare.result import Result
from parity_tests import sample_comparisons as samples


SCHEMA = json.loads(resources.files("jaxmodels.compare").joinpath("report.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
FAILURE = Failure("mlp", "pair.py:3: pair() fails with KeyError: 'x'", Place("pair.py", 3))


def as_read(results: list[Result], failures: list[Failure]) -> dict:
    text = json.dumps(report.to_json(results, failures=failures), allow_nan=False)
    return json.loads(text)


def test_the_schema_is_one() -> None:
    VALIDATOR.check_schema(SCHEMA)


@pytest.mark.parametrize(
    ("results", "failures", "status"),
    [
        ([samples.equal()], [], 0),
        ([samples.equal(), samples.different(), samples.undecided()], [FAILURE], 1),
        ([samples.undecided()], [], 2),
        ([samples.equal()], [FAILURE], 2),
        ([], [FAILURE, Failure(None, "pair.py: there is no such file")], 2),
    ],
    ids=["equal", "all kinds", "cannot be judged", "one fails", "nothing was compared"],
)
def test_reports(results: list[Result], failures: list[Failure], status: int) -> None:
    content = as_read(results, failures)
    VALIDATOR.validate(content)
    assert content["exit_status"] == status
    assert {"equal": 0, "different": 1, "cannot be judged": 2}[content["verdict"]] == status


def test_the_page_of_a_run_that_compared_nothing(tmp_path: Path) -> None:
    report.write([], tmp_path, failures=[FAILURE])
    VALIDATOR.validate(json.loads((tmp_path / "report.json").read_text()))
    page = (tmp_path / "report.html").read_text()
    assert 'id="verdict">cannot be judged<' in page
    assert f"mlp could not be compared: {FAILURE.message.replace(chr(39), '&#39;')}" in page


def test_numbers_that_are_not_finite() -> None:
    wrong = [Check("output", error, 1e-7, 1e-6) for error in (float("nan"), float("inf"))]
    losses = replace(samples.equal().losses, jax=[float("nan")] * 3)
    result = replace(samples.different(), outputs=wrong, losses=losses)
    content = as_read([result], [])
    VALIDATOR.validate(content)
    assert [check["error"] for check in content["models"][0]["outputs"]] == [None, None]
    assert content["models"][0]["losses"]["jax"] == [None] * 3


def test_every_field_is_described() -> None:
    """A new field of a model is to be in the schema, and in the guide."""
    model = as_read([samples.different()], [])["models"][0]
    assert model.keys() == SCHEMA["$defs"]["model"]["properties"].keys()
    kind = SCHEMA["$defs"]["model"]["properties"]["divergence"]["properties"]["kind"]
    assert kind["enum"] == list(get_args(Kind))
    guide = resources.files("jaxmodels.compare").joinpath("guide.md").read_text()
    assert not [name for name in [*get_args(Kind), *model, *SCHEMA["properties"]] if f"`{name}`" not in guide]


def test_a_report_that_lacks_a_field_is_refused() -> None:
    content = as_read([samples.equal()], [])
    del content["models"][0]["diagnosis"]
    with pytest.raises(jsonschema.ValidationError, match="'diagnosis' is a required property"):
        VALIDATOR.validate(content)
