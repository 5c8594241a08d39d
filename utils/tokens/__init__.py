"""Documents to token ids: tokenizers, encoders, the token store and the token stream.

What every script uses is imported here; the rest comes from the modules.
"""

from utils.tokens.tokenization import tokenize_documents
from utils.tokens.tokenizer import load_tokenizer


__all__ = ["load_tokenizer", "tokenize_documents"]
