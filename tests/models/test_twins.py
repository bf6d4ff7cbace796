"""Every model can be read beside its PyTorch twin: the same classes and methods in the same order, the same names."""

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
SPELLINGS = {"forward": "__call__", "img": "images"}  # `img` is an argument of the published packages

# Functions that both frameworks have; what only one of them has is not compared.
FUNCTIONS = {
    "jaxmodels/checks.py": "torch_reference/checks.py",
    "jaxmodels/losses.py": "torch_reference/losses.py",
}
# Names that only one framework needs, in any function.
FRAMEWORK = {"self", "config", "dtype", "param_dtype", "layer", "rngs", "device"}
# Other names that one side lacks, and why.
CONFIG_READ = "JAX's layers read the config"
PACKAGE = "arguments of the published package"
XLA = "written so that XLA's CPU compiler is fast"
OTHER_NAMES: dict[str, dict[str, tuple[str, str]]] = {
    "checks": {
        "require_images": ("name", PACKAGE + ": `img`"),
        "require_shape": ("array tensor", "the framework's word"),
    },
    "colt5": {
        "Attention.__call__": ("rows", XLA),
        "ConditionalRoutedViT.__init__": ("attn_args ff_args router", CONFIG_READ),
        "ConditionalRoutedViT.routers": ("block", "a pair in PyTorch"),
        "ConditionalRoutedViT.routing": (
            "block blocks captured forward i hook hooks routed selected",
            "nnx.capture in JAX, hooks in PyTorch",
        ),
    },
    "coordinate_descent": {
        "CoordinateDescentRouter.similarity": ("rows", XLA),
        "coordinate_descent": (
            "a b fill last schedule scores steps z",
            "the steps are in `_soft_top_k` in JAX",
        ),
    },
    "glom": {
        "ConsensusAttention.__call__": ("mask", "True where the package's buffer is False"),
        "Glom.__call__": ("bottom_up last", "the loop is in `run_steps` in JAX"),
    },
    "hourglass": {
        "Attention.__call__": ("logits past weights", "inside jaxmodels.nn.attend in JAX"),
        "HourglassTransformer.__init__": ("depths inner", CONFIG_READ),
        "HourglassTransformerLM.__call__": ("tokens x", PACKAGE),
        "HourglassTransformerLM.__init__": ("hourglass", CONFIG_READ),
        "HourglassTransformerLM.features": ("tokens hidden", PACKAGE),
    },
    "losses": {
        "cross_entropy": ("chosen counted losses", "one function of PyTorch"),
        "mean_cross_entropy": ("count losses", "one function of PyTorch"),
    },
    "mammut": {
        "Layer.__init__": ("sizes", CONFIG_READ),
        "MaMMUT.__call__": ("text_mask labels return_loss return_embeddings", PACKAGE),
        "MaMMUT._encode": ("encode", "a TokenExtractor in PyTorch"),
    },
    "scalable_vit": {
        "FeedForward.__call__": ("hidden", "a Sequential in PyTorch"),
        "PEG.__init__": ("init", "PyTorch's layers draw their own weights"),
        "PEG.__call__": ("bias height i j kernel out padded width", XLA),
    },
}


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
    """Except files that belong to no model."""
    known = {theirs for _, theirs in pairs()}
    found = {f"torch_reference/{path.name}" for path in (ROOT / "torch_reference").glob("*.py")}
    without_classes = {"__init__", "checks", "losses", "generation", "all_gather"}
    assert found - known == {f"torch_reference/{name}.py" for name in without_classes}


def functions(file: str) -> dict[str, ast.FunctionDef]:
    """The functions and methods of a file by name: `f`, `Class.f`."""
    path = ROOT / file
    found: dict[str, ast.FunctionDef] = {}
    for node in ast.parse(path.read_text()).body if path.exists() else []:
        for member in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(member, ast.FunctionDef):
                name = SPELLINGS.get(member.name, member.name)
                found[f"{node.name}.{name}" if isinstance(node, ast.ClassDef) else name] = member
    return found


def names(function: ast.FunctionDef) -> tuple[set[str], set[str], set[str]]:
    """The function's own arguments; its locals and those of functions in it; the attributes that it mentions."""
    own = {arg.arg for arg in ast.walk(function.args) if isinstance(arg, ast.arg)}
    nodes = list(ast.walk(function))
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)} - own
    bound |= {node.name for node in nodes if isinstance(node, ast.FunctionDef) and node is not function}
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    spelled = {SPELLINGS.get(name, name) for name in own}
    return spelled, {name for name in bound if name[0] != "_"} - own, attributes


def other_names(function: ast.FunctionDef, twin: ast.FunctionDef) -> set[str]:
    """Arguments and locals that only one of the two has.

    A name that the other one mentions as an attribute, as in `self.gamma` or `config.depth`, is not missing there.
    """
    (ours, our_locals, our_attributes), (theirs, their_locals, their_attributes) = (
        names(function),
        names(twin),
    )
    if function.name == "__init__":  # a config in JAX, the package's arguments in PyTorch
        ours, theirs, arguments = set(), set(), ours | theirs
    else:
        arguments = set()
    only_ours = (ours | our_locals) - (theirs | their_locals) - their_attributes
    only_theirs = (theirs | their_locals) - (ours | our_locals) - our_attributes
    return (only_ours | only_theirs) - arguments - FRAMEWORK


@pytest.mark.parametrize(("ours", "theirs"), [*pairs(), *FUNCTIONS.items()], ids=lambda file: Path(file).stem)
def test_the_same_local_names(ours: str, theirs: str) -> None:
    """With the exceptions that are listed, and no exception that is not needed."""
    twins = functions(theirs)
    found = {
        name: other_names(function, twins[name])
        for name, function in functions(ours).items()
        if name in twins
    }
    known = OTHER_NAMES.get(Path(ours).stem, {})
    assert {name: other for name, other in found.items() if other} == {
        name: set(other.split()) for name, (other, _) in known.items()
    }
