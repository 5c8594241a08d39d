"""Which fast encoder was wrong for which corpus: a file tells the other processes, and later runs."""

import json
import logging
import os
from pathlib import Path

from utils.tokens.encoder import Encoder


logger = logging.getLogger(__name__)


def heed_refusal(encoder: Encoder, file: Path) -> None:
    """Let the encoder use `tokenizers` if this version of its library was refused for the corpus of the file."""
    if encoder.fast is None or not file.exists():
        return
    refusal = json.loads(file.read_text())
    if refusal["encoder"] == encoder.name:
        encoder.use_tokenizers(refusal["reason"])


def refuse(encoder: Encoder, file: Path, source: str, text: str) -> None:
    """Let the encoder, and all that read the file, use `tokenizers`, since a text of the source got other ids."""
    reason = (
        f"{encoder.name} gives other ids than tokenizers for a document of {source} that begins with {text[:60]!r}, "
        "so all of it is tokenized with tokenizers, which takes longer"
    )
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
    unfinished.write_text(json.dumps({"encoder": encoder.name, "reason": reason}))
    unfinished.rename(file)
    encoder.use_tokenizers(reason)
    logger.warning("%s", reason)
