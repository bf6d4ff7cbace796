"""What a browser shows of the pages that need PyTorch; the others are in tests/test_page_layout.py."""

import pytest

from jaxmodels.compare import report
from jaxmodels.demo_page import write_page
from parity_tests import sample_comparisons as samples
from tests.benchmarks import sample_results
from tests.page_measurements import Page, Views, check, check_verdict, measure, needs_chromium
from tests.training import sample_run


pytestmark = needs_chromium

VERDICTS = ("equal", "different", "cannot be judged")
COMPARISONS = {  # the models of a report, and its verdict
    "one model": ([samples.equal()], "equal"),
    "one model that differs": ([samples.different()], "different"),
    "one model that cannot be judged": ([samples.undecided()], "cannot be judged"),
    "five models": (
        [samples.equal(), samples.equal("hourglass"), samples.different(), samples.undecided(), samples.equal("mammut")],
        "different",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Views]:
    """All pages, looked at with one start of the browser."""
    folder = tmp_path_factory.mktemp("pages")
    pages = {}
    for name, (results, _) in COMPARISONS.items():
        report.write(results, folder / name, command="jaxmodels compare --output " + "deep/" * 30)
        pages[name] = Page(folder / name / "report.html", VERDICTS)
    demo = folder / "demo"
    sample_run.write(demo / "train")
    report.write([samples.equal()], demo / "compare-trained")
    report.write(COMPARISONS["five models"][0], demo / "compare")
    sample_results.write_report(demo / "benchmarks")
    metrics = {"top1": 0.4512345, "expected_calibration_error": 0.0312345}
    write_page(demo, metrics, metrics, same=True)
    pages["demo"] = Page(demo / "report.html", VERDICTS)
    return measure(pages, folder)


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparison(name: str, seen: dict[str, Views]) -> None:
    check(seen[name])
    check_verdict(seen[name], COMPARISONS[name][1])


def test_demo(seen: dict[str, Views]) -> None:
    check(seen["demo"])
    check_verdict(seen["demo"], "equal")
