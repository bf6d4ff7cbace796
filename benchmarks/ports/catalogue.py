"""The ports that are judged: which package has them, which PyTorch class they follow, and what a difference means."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


Mode = Literal["eval", "train"]


@dataclass(frozen=True, kw_only=True)
class Port:
    """A port and its original.

    Attributes:
      file: the module in this folder with its `pair()`, or with its `torch_side()` and `jax_side()`.
      package: the distribution on the package index that has the port.
      module: what is imported of it.
      ours, theirs: the classes, as the table names them.
      modes: those of `jaxmodels compare` in which it is judged.
      two_environments: whether each side is captured in an environment of its own.
      remarks: by mode, or by what a pair's name adds to the file's, whether a difference matters.
    """

    file: str
    package: str
    module: str
    ours: str
    theirs: str
    modes: tuple[Mode, ...] = ("eval",)
    two_environments: bool = False
    remarks: Mapping[str, str] = field(default_factory=dict)


RESIZED = (
    "For images of another size than the configured one: 2% of the largest output here. At the configured size "
    "nothing is resized, and both agree."
)
MOMENTUM = (
    "For training, and for models that are then evaluated: the running statistics are nearly those of the last batch. "
    "Pretrained weights in evaluation mode are not affected."
)


def _transformers(model: str, file: str, **options: Any) -> Port:
    return Port(
        file=f"transformers_{file}",
        package="transformers",
        module="transformers",
        ours=f"Flax{model}",
        theirs=model,
        **options,
    )


PORTS = (
    _transformers("BertModel", "bert"),
    _transformers("GPT2Model", "gpt2"),
    _transformers("GemmaModel", "gemma"),
    _transformers("RoFormerModel", "roformer"),
    _transformers("Dinov2Model", "dinov2", remarks={"position embeddings resized": RESIZED}),
    _transformers("ResNetModel", "resnet", modes=("eval", "train")),
    Port(
        file="jax_resnet_resnet18",
        package="jax-resnet",
        module="jax_resnet",
        ours="ResNet18",
        theirs="ResNetForImageClassification",
        modes=("eval", "train"),
    ),
    Port(
        file="flaxmodels_block",
        package="flaxmodels",
        module="flaxmodels",
        ours="BasicBlock",
        theirs="ResNetBasicLayer",
        modes=("eval", "train"),
        remarks={"train": MOMENTUM},
    ),
    Port(
        file="eqx_zoo_bert",
        package="eqx-zoo",
        module="eqx_zoo",
        ours="Encoder",
        theirs="BertModel",
        two_environments=True,
    ),
    Port(
        file="eqx_zoo_qwen3",
        package="eqx-zoo",
        module="eqx_zoo",
        ours="CausalLM",
        theirs="Qwen3ForCausalLM",
        two_environments=True,
    ),
)
