"""The special tokens that a tokenizer's template adds around a text."""


def tokens_around(content: list[int], framed: list[int]) -> tuple[list[int], list[int]]:
    """The ids before and after a text, from its ids without and with special tokens.

    Raises:
        ValueError: the template does more than adding tokens around the text.
    """
    for start in range(len(framed) - len(content) + 1):
        if framed[start : start + len(content)] == content:
            return framed[:start], framed[start + len(content) :]
    raise ValueError("its template does more than adding tokens around a text")
