"""Three captioned emoji sets and the State of the Union addresses; readers of the user's own data; no network."""

from jaxmodels.data.captions import captioned_images as captioned_images
from jaxmodels.data.emoji import EmojiSet as EmojiSet
from jaxmodels.data.emoji import emoji as emoji
from jaxmodels.data.emoji_splits import emoji_splits as emoji_splits
from jaxmodels.data.labelled import labelled_images as labelled_images
from jaxmodels.data.splits import CaptionedImages as CaptionedImages
from jaxmodels.data.splits import CaptionedSplits as CaptionedSplits
from jaxmodels.data.splits import LabelledImages as LabelledImages
from jaxmodels.data.splits import LabelledSplits as LabelledSplits
from jaxmodels.data.splits import TextSplits as TextSplits
from jaxmodels.data.state_of_the_union import Corpus as Corpus
from jaxmodels.data.state_of_the_union import state_of_the_union as state_of_the_union
from jaxmodels.data.texts import texts as texts
