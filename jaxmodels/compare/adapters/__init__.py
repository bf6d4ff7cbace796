"""Models of other JAX libraries as `nnx.Module`s, so that the comparison needs to know only these.

`as_nnx` takes whatever `Pair.ours` may be. Each library has a file with one class, which states how its models are
called, how their calls are recorded, and how its layers are laid out. A library is imported where a model of it is met.
"""

from jaxmodels.compare.adapters.choice import as_nnx as as_nnx
from jaxmodels.compare.adapters.choice import refusal_of as refusal_of
from jaxmodels.compare.adapters.protocol import Adapted as Adapted
from jaxmodels.compare.adapters.protocol import Adapter as Adapter
from jaxmodels.compare.adapters.protocol import adapter_of as adapter_of
from jaxmodels.compare.adapters.protocol import call_bound as call_bound
