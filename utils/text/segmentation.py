"""Split documents into segments, the lines or sentences that pairs of texts are built from."""

from dataclasses import dataclass
from importlib.metadata import version

import sentencex

from utils.fingerprint import fingerprint


SEGMENTATION_VERSION = 1  # part of the cache key: increase it when the segments of the same document change


@dataclass(frozen=True)
class Segmenter:
    """Splits a document into segments, strips the white space around them and drops empty ones.

    Sentences come from Wikimedia's `sentencex` (rules and abbreviations for about 300 languages, 100 MB/s, nothing to
    download). For a language without rules it falls back to a related language or English.

    Args:
        by: "line" or "sentence".
        language: ISO 639 code of the language, for sentences.
    """

    by: str
    language: str = "en"

    def __call__(self, document: str) -> list[str]:
        pieces = document.split("\n") if self.by == "line" else sentencex.segment(self.language, document)
        return [segment for piece in pieces if (segment := piece.strip())]

    @property
    def fingerprint(self) -> str:
        """A digest of everything that determines the segments, including the version of the library."""
        library = [self.language, version("sentencex")] if self.by == "sentence" else []
        return fingerprint(version=SEGMENTATION_VERSION, by=self.by, library=library)
