"""Three captioned emoji sets and the State of the Union addresses; readers of the user's own data; no network."""

from jaxmodels.data.datasets import CaptionedImages as CaptionedImages
from jaxmodels.data.datasets import CaptionedSplits as CaptionedSplits
from jaxmodels.data.datasets import LabelledImages as LabelledImages
from jaxmodels.data.datasets import LabelledSplits as LabelledSplits
from jaxmodels.data.datasets import TextSplits as TextSplits
from jaxmodels.data.embedded.emoji import EmojiSet as EmojiSet
from jaxmodels.data.embedded.emoji import emoji as emoji
from jaxmodels.data.embedded.emoji_splits import emoji_splits as emoji_splits
from jaxmodels.data.embedded.state_of_the_union import Corpus as Corpus
from jaxmodels.data.embedded.state_of_the_union import state_of_the_union as state_of_the_union
from jaxmodels.data.preprocessing import ImagePreprocessing as ImagePreprocessing
from jaxmodels.data.preprocessing import Preprocessing as Preprocessing
from jaxmodels.data.preprocessing import TextPreprocessing as TextPreprocessing
from jaxmodels.data.readers.captioned_images import captioned_images as captioned_images
from jaxmodels.data.readers.labelled_images import labelled_images as labelled_images
from jaxmodels.data.readers.texts import texts as texts
