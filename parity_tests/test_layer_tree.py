"""Reports of deep models: what agrees is folded, and neither plots nor pages grow with every layer."""

import re

from jaxmodels.compare import report
from jaxmodels.compare.figures import MOST_POINTS
from jaxmodels.compare.layer_tree import layer_tree
from jaxmodels.compare.noise import LayerCheck
from parity_tests import sample_comparisons as samples


MOST_BYTES_PER_LAYER = 250


def check(name: str, error: float = 1e-7) -> LayerCheck:
    return LayerCheck(name, error, 1e-7, 8e-7, call=0, kind="output")


def test_modules_are_nested_by_their_paths() -> None:
    root = layer_tree(
        [
            check(""),
            check("stem"),
            check("body.blocks.0.up"),
            check("body.blocks.0.down", 1.0),
            check("body.blocks.1.up"),
        ]
    )
    assert [child.name for child in root.children.values()] == ["", "stem", "body.blocks"]
    blocks = root.children["body.blocks"]
    assert [child.name for child in blocks.children.values()] == ["0", "1.up"]
    assert [child.ok for child in blocks.children.values()] == [False, True]
    assert (root.modules, blocks.modules, blocks.closest.error) == (5, 3, 1.0)


def test_a_thousand_layers() -> None:
    few, many = samples.deep(100), samples.deep(1000)
    pages = [report.html([result], report.to_json([result])) for result in (few, many)]
    assert len(pages[1]) - len(pages[0]) < MOST_BYTES_PER_LAYER * 900
    tree = re.search(r'<details class="tree">.*?</details>\n', pages[1], re.DOTALL)
    assert tree is not None
    assert tree[0].count("<code>") > 1000
    # Open are the model's own level and the ways to the layer that is wrong: all others agree.
    assert re.findall(r"<details open><summary><code>(.*?)</code>", tree[0]) == ["encoder.blocks", "50", "0"]
    plot = pages[1][pages[1].index("<svg") : pages[1].index("</svg>")]
    assert plot.count("<use ") < MOST_POINTS + 100  # one for each point, tick and line
    assert "each point is the worst of 4" in plot
    assert "out of tolerance" in plot
