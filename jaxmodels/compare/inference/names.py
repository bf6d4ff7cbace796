"""How much two dotted paths resemble each other, across the names that libraries give to one thing."""

import re
from collections import Counter


# Names of one thing in Flax, Haiku, Equinox and published PyTorch code -> one of them.
SYNONYMS = {
    "kernel": "weight", "scale": "weight", "embedding": "weight", "embeddings": "weight", "w": "weight",
    "gamma": "weight", "g": "weight", "beta": "bias", "b": "bias", "offset": "bias",
    "mean": "running_mean", "var": "running_var", "query": "q", "key": "k", "value": "v", "wq": "q", "wk": "k",
    "wv": "v", "to_q": "q", "to_k": "k", "to_v": "v", "q_proj": "q", "k_proj": "k", "v_proj": "v", "wo": "out",
    "out_proj": "out", "o_proj": "out", "to_out": "out", "blocks": "layers", "block": "layers", "layer": "layers",
    "h": "layers", "layer_norm": "norm", "layernorm": "norm", "ln": "norm", "batch_norm": "bn", "batchnorm": "bn",
    "embed": "emb", "dense": "linear", "fc": "linear", "conv2d": "conv",
}  # fmt: skip


# Names that share no more words say nothing.
ALIKE_NAMES = 0.5


def resemblance(ours: str, theirs: str) -> float:
    """`similarity` where it means something: a word and more than half of all words are the same; otherwise 0."""
    words = set(_words(ours)) & set(_words(theirs))
    alike = similarity(ours, theirs)
    return alike if alike > ALIKE_NAMES and any(not word.isdigit() for word in words) else 0.0


def similarity(ours: str, theirs: str) -> float:
    """The share of words that two paths have in common, from 0 to 1."""
    a, b = Counter(_words(ours)), Counter(_words(theirs))
    total = a.total() + b.total()
    return 2 * (a & b).total() / total if total else 1.0


def _words(path: str) -> list[str]:
    words = []
    for part in path.split("."):
        part = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", part).lower()
        match = re.fullmatch(r"(.*?)_?(\d+)", part)  # Dense_0, layers3
        name, number = match.groups() if match else (part, None)
        if name in SYNONYMS:
            words.append(SYNONYMS[name])
        elif name:
            words += [SYNONYMS.get(word, word) for word in name.split("_") if word]
        if number is not None:
            words.append(str(int(number)))
    return words
