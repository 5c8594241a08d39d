"""A document -> its segments, the lines or sentences that pairs of text are made of."""

from dataclasses import dataclass
from importlib.metadata import version

import sentencex

from utils.fingerprint import fingerprint


SEGMENTATION_VERSION = 1  # part of the cache key: count it up when the same document gives other segments


@dataclass(frozen=True)
class Segmenter:
    """Cuts a document into segments, without the white space around them; what is empty then is no segment.

    Sentences are those of `sentencex` (Wikimedia's; rules and abbreviations of some 300 languages, 100 MB/s, no
    download). Of the languages that it has no rules for it takes those of a related one, or English.

    Args:
        by: "line" or "sentence".
        language: of the sentences, as an ISO 639 code.
    """

    by: str
    language: str = "en"

    def __call__(self, document: str) -> list[str]:
        pieces = document.split("\n") if self.by == "line" else sentencex.segment(self.language, document)
        return [segment for piece in pieces if (segment := piece.strip())]

    @property
    def fingerprint(self) -> str:
        """What decides the segments of a document, the library's version included."""
        library = [self.language, version("sentencex")] if self.by == "sentence" else []
        return fingerprint(version=SEGMENTATION_VERSION, by=self.by, library=library)
