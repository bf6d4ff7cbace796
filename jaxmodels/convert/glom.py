"""Names and layouts of GLOM, theirs -> ours, in the order of glom-pytorch's state_dict."""

from collections.abc import Iterator

from jaxmodels.convert.table import Derived, Entry, Parameter, Twin, embedding, linear
from jaxmodels.models.glom import Glom, non_local_mask


def table(model: Glom) -> Iterator[Entry]:
    config = model.config
    yield Twin("", "", "b c h w -> b h w c", "... -> ...")
    yield Parameter("init_levels", "init_levels")
    yield from linear("image_to_tokens.1", "image_to_tokens")
    yield from embedding("pos_emb", "pos_emb")
    for name in ("bottom_up", "top_down"):
        yield Twin(name, name, "b n g d -> g b n d")
        yield from _grouped_conv(f"{name}.net.1", f"{name}.up")
        yield from _grouped_conv(f"{name}.net.3", f"{name}.down")
    yield Twin("attention", "attention", "b n l d -> l b n d")
    if config.local_consensus_radius > 0:
        side = config.image_size // config.patch_size
        yield Derived(
            "attention.non_local_mask", lambda: non_local_mask(side, config.local_consensus_radius)[None]
        )


def _grouped_conv(theirs: str, ours: str) -> Iterator[Entry]:
    """A grouped Conv1d whose channels are (group, feature), group first."""
    yield Twin(theirs, ours, "b (g d) n -> g b n d")
    yield Parameter(f"{theirs}.weight", f"{ours}.kernel", "(g o) i 1 -> g i o")
    yield Parameter(f"{theirs}.bias", f"{ours}.bias", "(g o) -> g o")
