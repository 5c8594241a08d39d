"""Documents are split into lines or sentences."""

from utils.text import segmentation
from utils.text.segmentation import Segmenter


def test_lines():
    assert Segmenter("line")("One.\r\n\n  two words \n\x0b\nthree\x0cfour\n") == ["One.", "two words", "three\x0cfour"]
    assert Segmenter("line")(" \n\n") == []


def test_sentences():
    """Sentences do not end at abbreviations or within quotations, and include no white space around them."""
    text = 'Mr. Smith paid $3.50 on Jan. 5. "Did he?" she asked.  He did!\n\nIt was J. K. Rowling.'
    assert Segmenter("sentence")(text) == [
        "Mr. Smith paid $3.50 on Jan. 5.", '"Did he?" she asked.', "He did!", "It was J. K. Rowling.",
    ]  # fmt: skip
    german = "Das kostet z. B. 3 Euro, d. h. viel. Prof. Müller zahlt."
    assert Segmenter("sentence", "de")(german) == ["Das kostet z. B. 3 Euro, d. h. viel.", "Prof. Müller zahlt."]


def test_fingerprint_covers_what_determines_the_segments(monkeypatch):
    lines, english, german = Segmenter("line"), Segmenter("sentence", "en"), Segmenter("sentence", "de")
    before = [lines.fingerprint, english.fingerprint, german.fingerprint]
    assert len(set(before)) == 3
    assert Segmenter("line", "de").fingerprint == lines.fingerprint  # the language does not affect lines
    monkeypatch.setattr(segmentation, "version", lambda package: "another")
    assert english.fingerprint not in before
    assert lines.fingerprint in before
    monkeypatch.setattr(segmentation, "SEGMENTATION_VERSION", 0)
    assert lines.fingerprint not in before
