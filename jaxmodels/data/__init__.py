"""Data inside the package: three captioned emoji sets and the State of the Union addresses; no network."""

from jaxmodels.data.emoji import EmojiSet as EmojiSet
from jaxmodels.data.emoji import emoji as emoji
from jaxmodels.data.state_of_the_union import Corpus as Corpus
from jaxmodels.data.state_of_the_union import state_of_the_union as state_of_the_union
