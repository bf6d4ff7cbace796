"""What a browser shows of the pages: nothing is lost on a wide screen or on a phone, in light or in dark.

Pages that need PyTorch are in parity_tests/test_page_layout.py.
"""

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from jaxmodels import pages
from tests.benchmarks import sample_results
from tests.page_measurements import NARROW, Page, Views, check, check_verdict, measure, needs_chromium
from tests.training import sample_run


pytestmark = needs_chromium

RUN_VERDICT = "better than 2 of 2 baselines"
CELLS = "".join(f"<td>cell {i}</td>" for i in range(60))
PIXEL = (  # white
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAGUbAxwAAAABJRU5ErkJggg=="
)
# A fault that is put into a correct page -> the message that names it.
FAULTS = {
    "wide table": (f"<table><tr>{CELLS}</tr></table>", r"outside of the page at 1200 px: \['<table> cell 0"),
    "wide table that scrolls": (
        f'<div class="scroll"><table><tr>{CELLS}</tr></table></div>',
        r"<table> cell 0.* is \d+ px too wide",
    ),
    "box as wide as a desk": ('<p style="width: 40rem">box</p>', r"at 400 px: \['<p> box ends at 6\d\d px"),
    "cut-off box": (
        f'<div style="overflow: hidden"><table><tr>{CELLS}</tr></table></div>',
        r"cut off at 1200 px: \['<div> cell 0",
    ),
    "text at the edge of a plot": (
        '<svg width=100><text x=80 y=20 fill="var(--text)">long name</text></svg>',
        r"cut off at 1200 px: \['<text> long name",
    ),
    "dark text": ('<p style="color: #222">words</p>', r"dark: \['<p> words has a contrast of 1\.\d"),
    "light text": ('<p style="color: #ccc">words</p>', r"light: \['<p> words has a contrast of 1\.\d"),
    "white box": ('<p style="background: #fff">words</p>', r"dark: \['<p> words has a contrast of 1\.\d"),
    "white page": ("<style>body { background: white; color: #222 }</style>", "bright in the dark theme"),
    "page without a theme": (
        "<style>:root { color-scheme: light } body { background: none }</style>",
        "dark",
    ),
    "white image": (f'<img alt="loss" src="{PIXEL}">', "<img> loss"),
    "dark text in a plot": ("<svg><text y=20 fill='#222'>axis</text></svg>", r"dark: \['<text> axis has"),
    "text on a bar": (
        '<svg><rect width=90 height=40 fill="#7fb2f5" /><text y=20 fill="var(--text)">bar</text></svg>',
        r"dark: \['<text> bar has a contrast of 1\.\d",
    ),
    "black line in a plot": (
        '<svg><g id="axes"><path d="M0 0 L90 90" stroke="black" fill="none" /></g></svg>',
        r"dark: \['<path> in axes",
    ),
}
VERDICT_FAULTS = {
    "last column": (
        f'<div class="scroll"><table><tr>{CELLS}<td>equal</td></tr></table></div>',
        "only after scrolling",
    ),
    "second screen": ('<p style="height: 900px"></p><b>equal</b>', "px down"),
    "wrong verdict": ("<b>different</b>", "the first verdict is 'different'"),
    "no verdict": ("<p>equal to what?</p>", "there is no verdict"),
}


def page_with(body: str) -> str:
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return f"<!doctype html><html><head>{head}<style>{pages.stylesheet()}</style></head><body>{body}</body></html>"


def good_body() -> str:
    with mpl.rc_context(pages.plot_settings()):
        figure = Figure(figsize=(9, 3))
        axes = figure.subplots()
        axes.plot([1, 2], [1, 3], color=pages.JAX, label="loss")
        axes.legend()
        plot = pages.inline_svg(figure, name="loss")
    table = f'<div class="scroll"><table><tr>{CELLS[: CELLS.index("<td>cell 9")]}</tr></table></div>'
    return (
        f'<h1>Both sides are <b>equal</b></h1><div class="plot">{plot}</div>{table}<pre>{"word " * 60}</pre>'
    )


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Views]:
    """All pages, looked at with one start of the browser."""
    folder = tmp_path_factory.mktemp("pages")
    bodies = {"good": good_body()}
    bodies |= {name: good_body() + body for name, (body, _) in FAULTS.items()}
    bodies |= {name: body for name, (body, _) in VERDICT_FAULTS.items()}
    described = {}
    for number, (name, body) in enumerate(bodies.items()):
        path = folder / f"{number}.html"
        path.write_text(page_with(body), encoding="utf-8")
        described[name] = Page(path, verdicts=("equal", "different"))
    sample_results.write_report(folder)
    described["benchmark"] = Page(folder / "report.html")
    sample_run.write(folder / "run")
    described["run"] = Page(folder / "run" / "report.html", verdicts=[RUN_VERDICT])
    return measure(described, folder)


def test_a_page_that_is_right(seen: dict[str, Views]) -> None:
    check(seen["good"])
    check_verdict(seen["good"], "equal")


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name: str, seen: dict[str, Views]) -> None:
    with pytest.raises(AssertionError, match=FAULTS[name][1]):
        check(seen[name])


@pytest.mark.parametrize("name", VERDICT_FAULTS)
def test_a_hidden_verdict_is_found(name: str, seen: dict[str, Views]) -> None:
    with pytest.raises(AssertionError, match=VERDICT_FAULTS[name][1]):
        check_verdict(seen[name], "equal")


def test_benchmark_report(seen: dict[str, Views]) -> None:
    check(seen["benchmark"])
    assert seen["benchmark"][NARROW].theme == "light"


def test_train_report(seen: dict[str, Views]) -> None:
    check(seen["run"])
    check_verdict(seen["run"], RUN_VERDICT)
