"""The table of a model of another library, from the names of its modules."""

from collections.abc import Iterator, Mapping

import torch
from flax import nnx

from jaxmodels.compare.adapters.protocol import Adapted, Adapter, Place, adapter_of
from jaxmodels.compare.composites import Composites
from jaxmodels.compare.recurrent import paired_cells
from jaxmodels.compare.stacks import in_block, layer_path
from jaxmodels.convert.table import Entry, Parameter, Twin


def adapted_table(
    model: Adapted,
    torch_modules: Mapping[str, torch.nn.Module],
    names: Mapping[str, str],
    composites: Composites,
) -> tuple[Entry, ...]:
    """What `table_from_names` returns for it; the adapter knows the layouts."""
    adapter = adapter_of(model)
    assert adapter is not None
    theirs_of = Names(adapter, torch_modules, names)
    paths = sorted(set(adapter.modules(model)))
    variables = _variables_by_layer(model)
    paired = paired_cells({path: theirs_of(path) for path in composites.ours}, composites.cells)
    entries: list[Entry] = []
    packed: list[str] = []
    for path in paths:
        their_path = theirs_of(path)
        twin = torch_modules.get(their_path)
        in_between = bool(path) and their_path == theirs_of(path.rpartition(".")[0]) and path not in names
        stack = theirs_of.stack(path)
        entries += [Twin(one, layer_path(path, i), None) for i, one in enumerate(stack)]
        if their_path and twin is not None and not in_between and not stack:
            entries.append(Twin(their_path, path, None))
        if any(path.startswith(f"{outer}.") for outer in packed):
            continue
        if isinstance(twin, torch.nn.MultiheadAttention) and not in_between:
            attention = list(_attention(adapter, path, their_path, twin, variables))
            packed += [path] if attention else []
            entries += attention
        if path in paired and (recurrent := composites.entries(path, paired[path])):
            packed.append(path)
            entries += recurrent
            continue
        if stack:
            entries += _stacked(adapter, path, stack, torch_modules[stack[0]], variables.get(path, {}))
        else:
            entries += _parameters(adapter, path, their_path, twin, variables.get(path, {}))
    return tuple(entries)


class Names:
    """The PyTorch path of each module, by the caller's names and by those that the libraries give by themselves."""

    LISTS = (torch.nn.ModuleList, torch.nn.Sequential)

    def __init__(
        self, adapter: Adapter, torch_modules: Mapping[str, torch.nn.Module], names: Mapping[str, str]
    ) -> None:
        self.adapter, self.torch_modules, self.names = adapter, torch_modules, names

    def __call__(self, path: str) -> str:
        if path in self.names:
            return self.names[path]
        if not path:
            return ""
        parent, _, name = path.rpartition(".")
        outer = self(parent)
        candidates = [_joined(outer, one) for one in self.adapter.names_in_torch(name)]
        return next((one for one in candidates if one in self.torch_modules), candidates[0])

    def stack(self, path: str) -> list[str]:
        """The PyTorch modules of a module whose weights are stacked for a scan; empty where they are not."""
        if self(path) in self.torch_modules and type(self.torch_modules[self(path)]) not in self.LISTS:
            return []
        outer = path
        while outer:
            modules = self.torch_modules.get(self(outer))
            if isinstance(modules, self.LISTS):
                found = [f"{self(outer)}.{i}{path[len(outer) :]}" for i in range(len(modules))]
                return found if all(one in self.torch_modules for one in found) else []
            outer = outer.rpartition(".")[0]
        return []


def _stacked(
    adapter: Adapter,
    path: str,
    theirs: list[str],
    twin: torch.nn.Module,
    variables: Mapping[str, nnx.Variable],
) -> Iterator[Parameter]:
    """The entries of weights whose first axis counts the modules of a list in PyTorch."""
    for name, variable in variables.items():
        layout = adapter.layout(Place(path, name, variable.shape[1:], twin))
        if layout is None:
            continue
        for i, their_path in enumerate(theirs):
            entry = Parameter(
                _joined(their_path, layout.name),
                _joined(path, name),
                layout.axes,
                flip=layout.flip,
                sizes=layout.sizes,
            )
            yield in_block(entry, i, len(theirs), variable.ndim - 1)


def _variables_by_layer(model: Adapted) -> dict[str, dict[str, nnx.Variable]]:
    found: dict[str, dict[str, nnx.Variable]] = {}
    for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))):
        *layer, name = map(str, path)
        found.setdefault(".".join(layer), {})[name] = variable
    return found


def _parameters(
    adapter: Adapter,
    path: str,
    their_path: str,
    twin: torch.nn.Module | None,
    variables: Mapping[str, nnx.Variable],
) -> Iterator[Parameter]:
    for name, variable in variables.items():
        layout = adapter.layout(Place(path, name, variable.shape, twin))
        if layout is not None:
            yield Parameter(
                _joined(their_path, layout.name),
                _joined(path, name),
                layout.axes,
                flip=layout.flip,
                sizes=layout.sizes,
            )


def _attention(
    adapter: Adapter,
    path: str,
    their_path: str,
    twin: torch.nn.MultiheadAttention,
    variables: Mapping[str, Mapping[str, nnx.Variable]],
) -> Iterator[Parameter]:
    """Queries, keys and values of one packed weight, or of three where their widths differ."""
    names = adapter.attention
    if names is None or any(_joined(path, part) not in variables for part in names.parts):
        return
    *inner, output = (_joined(path, part) for part in names.parts)
    for index, (layer, letter) in enumerate(zip(inner, "qkv", strict=True)):
        part = (index, 3) if twin.in_proj_weight is not None else None
        key = f"{letter}_proj_weight" if part is None else "in_proj_weight"
        yield Parameter(_joined(their_path, key), _joined(layer, names.weight), names.weight_axes, part=part)
        if names.bias in variables[layer]:
            key = _joined(their_path, "in_proj_bias")
            yield Parameter(key, _joined(layer, names.bias), names.bias_axes, part=(index, 3))
    key = _joined(their_path, "out_proj")
    yield Parameter(f"{key}.weight", _joined(output, names.weight), names.output_axes)
    if names.bias in variables[output]:
        yield Parameter(f"{key}.bias", _joined(output, names.bias))


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}".strip(".")
