"""Where documents come from: the Hub, files, saved datasets and streams.

What every script uses is imported here; the rest comes from the modules.
"""

from utils.text.corpus import load_corpus


__all__ = ["load_corpus"]
