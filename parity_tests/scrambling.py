"""Gives the modules and parameters of a PyTorch model random names, in a random order."""

import numpy as np
import torch


# Their forward passes and indices go by the order of their children.
ORDERED = (torch.nn.Sequential, torch.nn.ModuleList)


def scrambled(model: torch.nn.Module, seed: int = 0) -> dict[str, str]:
    """Renames everything in place; returns old name -> new name of every parameter and buffer."""
    generator = np.random.default_rng(seed)
    before = {id(tensor): name for name, tensor in _tensors(model)}
    for module in list(model.modules()):
        aliases: dict[str, str] = {}
        for kind in ("_modules", "_parameters", "_buffers"):
            # PyTorch's own layers keep the names that their code asks for; a ModuleList has numbers.
            if type(module).__module__.startswith("torch.nn.") and not isinstance(
                module, torch.nn.Sequential
            ):
                continue
            entries = list(vars(module)[kind].items())
            if not isinstance(module, ORDERED):
                generator.shuffle(entries)
            vars(module)[kind].clear()
            for name, value in entries:
                aliases[name] = "".join(generator.choice(list("bcdfghjklmnpqrstvwxyz"), 6))
                vars(module)[kind][aliases[name]] = value
        if aliases:
            module.__class__ = _with_aliases(type(module), aliases)
    return {before[id(tensor)]: name for name, tensor in _tensors(model)}


def _tensors(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _with_aliases(kind: type, aliases: dict[str, str]) -> type:
    """A subclass in which the old names still lead to their values."""

    def getattr_(self: torch.nn.Module, name: str):
        return kind.__getattr__(self, aliases.get(name, name))

    return type(kind.__name__, (kind,), {"__getattr__": getattr_, "__module__": kind.__module__})
