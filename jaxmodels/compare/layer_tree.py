"""The layers of a result as a tree of their paths, so that a report can fold what agrees."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxmodels.compare.noise import Check, LayerCheck, closeness


@dataclass
class Branch:
    """A module, or several of which the outer ones hold nothing else.

    Attributes:
      name: its part of the path, such as "layers.0"; "" is the model.
      path: the PyTorch path.
      checks: of its own calls.
      children: the modules inside.
    """

    name: str
    path: str = ""
    checks: list[LayerCheck] = field(default_factory=list)
    children: dict[str, "Branch"] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether everything in it agrees."""
        return all(check.ok for check in self.checks) and all(child.ok for child in self.children.values())

    @property
    def modules(self) -> int:
        """How many of it and of the modules inside were compared."""
        return bool(self.checks) + sum(child.modules for child in self.children.values())

    @property
    def closest(self) -> Check:
        """The check that comes closest to its tolerance, of all calls in it."""
        return max([*self.checks, *(child.closest for child in self.children.values())], key=closeness)


def layer_tree(checks: Sequence[LayerCheck]) -> Branch:
    """The modules that were compared, in the order of their first call; those of the model itself are a branch too."""
    root = Branch("")
    for check in checks:
        branch = root
        for part in filter(None, check.name.split(".")):
            path = f"{branch.path}.{part}".removeprefix(".")
            branch = branch.children.setdefault(part, Branch(part, path))
        branch.checks.append(check)
    model = [Branch("", checks=root.checks)] if root.checks else []
    branches = [*model, *map(_joined, root.children.values())]
    return Branch("", children={branch.path: branch for branch in branches})


def _joined(branch: Branch) -> Branch:
    """The branch without levels that hold a single module and nothing else."""
    children = [_joined(child) for child in branch.children.values()]
    if len(children) == 1 and not branch.checks:
        (child,) = children
        return Branch(f"{branch.name}.{child.name}", child.path, child.checks, child.children)
    return Branch(branch.name, branch.path, branch.checks, {child.path: child for child in children})
