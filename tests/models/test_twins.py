"""Every model can be read beside its PyTorch twin: the same classes, with the same methods, in the same order."""

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
# Files in other places than jaxmodels/models/X.py and torch_reference/X.py.
SHARED = {
    "jaxmodels/nn/coordinate_descent.py": "torch_reference/coordinate_descent.py",
    "jaxmodels/nn/positions.py": "torch_reference/positions.py",
}
CONFIG = "the fields are the arguments of the PyTorch constructor"
# Classes that one side lacks, and why.
WITHOUT_TWIN = {
    "jaxmodels/models/colt5.py": {"ConditionalRoutedViTConfig": CONFIG},
    "jaxmodels/models/glom.py": {"GlomConfig": CONFIG, "GroupedLinear": "nn.Conv1d with groups in PyTorch"},
    "jaxmodels/models/hourglass_config.py": {
        "HourglassTransformerConfig": CONFIG,
        "HourglassTransformerLMConfig": CONFIG,
    },
    "jaxmodels/models/mammut.py": {"MaMMUTConfig": CONFIG},
    "jaxmodels/models/scalable_vit.py": {
        "ScalableViTConfig": CONFIG,
        "PatchLinear": "nn.Conv2d with a stride in PyTorch",
    },
    "jaxmodels/models/simple_vit.py": {"SimpleViTConfig": CONFIG},
    "torch_reference/hourglass.py": {"PreNorm": "names of the package's state_dict"},
    "torch_reference/mammut.py": {
        "LayerNorm": "holds the package's buffer; jaxmodels.nn has the layer",
        "SwiGLU": "a module because the package counts it in a Sequential; a function in JAX",
        "Residual": "names of the package's state_dict",
    },
    "torch_reference/scalable_vit.py": {
        "ChanLayerNorm": "names of the package's state_dict; jaxmodels.nn has the layer",
        "Downsample": "names of the package's state_dict; a Conv in JAX",
    },
    "torch_reference/simple_vit.py": {
        "TokenExtractor": "names of vit-pytorch's Extractor; MaMMUT calls `tokens` in JAX"
    },
}
# Public methods that one side lacks, and why.
WITHOUT_COUNTERPART: dict[str, dict[str, str]] = {
    "jaxmodels/models/glom.py:Glom": {"run_steps": "a compiled loop; Python's loop in PyTorch's forward"}
}
SPELLINGS = {"forward": "__call__"}


def pairs() -> list[tuple[str, str]]:
    """(JAX file, PyTorch file) of every model; a file without the other is paired with the name that it would have."""
    names = {path.name for path in (ROOT / "jaxmodels" / "models").glob("*.py")} - {"__init__.py"}
    return [
        *((f"jaxmodels/models/{name}", f"torch_reference/{name}") for name in sorted(names)),
        *SHARED.items(),
    ]


def classes(file: str) -> dict[str, list[str]]:
    """The public methods of every class that must have a twin, in the file's order."""
    path = ROOT / file
    if not path.exists():
        return {}
    nodes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    known = WITHOUT_TWIN.get(file, {})
    assert known.keys() <= {node.name for node in nodes}, f"{file} has lost a class of WITHOUT_TWIN"
    return {node.name: methods(node, file) for node in nodes if node.name not in known}


def methods(node: ast.ClassDef, file: str) -> list[str]:
    names = [member.name for member in node.body if isinstance(member, ast.FunctionDef)]
    names = [SPELLINGS.get(name, name) for name in names]
    known = WITHOUT_COUNTERPART.get(f"{file}:{node.name}", {})
    return [name for name in names if (name == "__call__" or name[0] != "_") and name not in known]


@pytest.mark.parametrize(("ours", "theirs"), pairs(), ids=lambda file: Path(file).stem)
def test_the_same_classes_in_the_same_order(ours: str, theirs: str) -> None:
    assert list(classes(ours)) == list(classes(theirs))


@pytest.mark.parametrize(("ours", "theirs"), pairs(), ids=lambda file: Path(file).stem)
def test_the_same_public_methods_in_the_same_order(ours: str, theirs: str) -> None:
    """A class that only names what PyTorch's Sequential runs needs no `forward`."""
    twins = classes(theirs)
    for name, found in classes(ours).items():
        expected = twins[name]
        assert found == expected or (found == ["__call__"] and not expected), f"{theirs}: {name}"


def test_every_twin_has_a_model() -> None:
    """But for what belongs to no model: PyTorch files that have no partner above."""
    known = {theirs for _, theirs in pairs()}
    found = {f"torch_reference/{path.name}" for path in (ROOT / "torch_reference").glob("*.py")}
    without_classes = {"__init__", "checks", "losses", "generation", "all_gather"}
    assert found - known == {f"torch_reference/{name}.py" for name in without_classes}
