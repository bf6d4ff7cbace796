"""How `jaxmodels compare` prints: a table, JSON alone on stdout, or annotations of GitHub's workflows."""

import contextlib
import json
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Literal

from rich.console import Console

from jaxmodels.compare.explanation import explain
from jaxmodels.compare.outcome import Failure, Outcome
from jaxmodels.compare.places import Place
from jaxmodels.compare.report import COLUMNS, overview, print_table, to_json
from jaxmodels.compare.result import Result


Format = Literal["text", "json", "github"]


@contextlib.contextmanager
def stdout_for(output_format: Format) -> Generator[None]:
    """For JSON, what the models and the user's file print goes to stderr while the block runs."""
    if output_format == "json":
        with contextlib.redirect_stdout(sys.stderr):
            yield
    else:
        yield


def show(outcome: Outcome, output_format: Format, console: Console, *, command: str) -> None:
    """Prints a finished run.

    Args:
      outcome: what was found.
      output_format: "text" prints the table, "json" the content of report.json, "github" the table and one
        annotation for each pair that is not equal, and appends a summary to the file $GITHUB_STEP_SUMMARY.
      console: where text goes.
      command: the command line.
    """
    if output_format == "json":
        report = to_json(outcome.results, command=command, failures=outcome.failures)
        print(json.dumps(report, indent=1, allow_nan=False))
        return
    print_table(outcome.results, console)
    for failure in outcome.failures:
        print(f"jaxmodels: {_named(failure)}", file=sys.stderr)
    if output_format == "github":
        for line in annotations(outcome):
            print(line)
        if path := os.environ.get("GITHUB_STEP_SUMMARY"):
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(summary(outcome))


def annotations(outcome: Outcome) -> list[str]:
    """Workflow commands, one for each pair; GitHub shows them beside the lines of a pull request."""
    lines = []
    for result in outcome.results:
        title = f"{result.model}: {result.verdict} in {result.dtype}"
        text = "\n".join(f"{label}: {value}" for label, value in explain(result).items())
        lines.append(_annotation("notice" if result.ok else "error", result.code, title, text or "equal"))
    for failure in outcome.failures:
        title = f"{failure.model or 'jaxmodels compare'}: could not be compared"
        lines.append(_annotation("error", failure.code, title, failure.message))
    return lines


def summary(outcome: Outcome) -> str:
    """The table in Markdown, and below it what is known of each pair that is not equal."""
    rows = [[f"{cell.text} {cell.share}".strip() for cell in overview(result)] for result in outcome.results]
    table = [COLUMNS, ["---"] * len(COLUMNS), *rows] if rows else []
    lines = ["## JAX against PyTorch", "", *(f"| {' | '.join(map(_cell, row))} |" for row in table), ""]
    for result in outcome.results:
        lines += _details(result)
    lines += [f"* {_named(failure)}" for failure in outcome.failures]
    return "\n".join(lines).rstrip() + "\n"


def _details(result: Result) -> list[str]:
    if result.ok:
        return []
    return [f"**{result.model}**", "", *(f"* {label}: {text}" for label, text in explain(result).items()), ""]


def _named(failure: Failure) -> str:
    return f"{failure.model}: {failure.message}" if failure.model else failure.message


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _annotation(level: str, code: Place | None, title: str, text: str) -> str:
    """One workflow command; what would end it or one of its properties is escaped as GitHub asks for."""
    properties = {"file": code.file, "line": str(code.line)} if code else {}
    if code and code.end_line:
        properties["endLine"] = str(code.end_line)
    properties["title"] = title
    written = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{level} {written}::{_data(text)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
