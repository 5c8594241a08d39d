"""Documents to token ids: tokenizers, encoders, the token store and the token stream."""
