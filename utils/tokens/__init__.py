"""Turn documents into token ids: tokenizers, the encoder, the token store and the token stream."""
