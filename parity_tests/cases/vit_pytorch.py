"""The published files of vit-pytorch, without the package's `__init__`, which needs torchvision."""

import functools
import importlib.util
from pathlib import Path
from types import ModuleType


@functools.cache
def published(name: str) -> ModuleType:
    """`vit_pytorch/<name>.py`, executed once."""
    package = importlib.util.find_spec("vit_pytorch")
    assert package is not None, "vit-pytorch is not installed: pip install --no-deps vit-pytorch"
    assert package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]) / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"vit_pytorch_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
