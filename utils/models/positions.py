"""How many positions a model has for tokens."""

from transformers import PretrainedConfig


# Models that number positions from pad_token_id + 1, as fairseq does.
POSITIONS_AFTER_PADDING = (
    "camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip


def max_positions(config: PretrainedConfig) -> int | None:
    """The length of the longest sequence that the model has positions for; None if there is no limit."""
    positions = getattr(config, "max_position_embeddings", None)
    return positions - first_position(config) if positions and positions > 0 else None


def first_position(config: PretrainedConfig) -> int:
    """The number of the first token's position."""
    if config.model_type not in POSITIONS_AFTER_PADDING:
        return 0
    return 2 if config.model_type == "mpnet" else (config.pad_token_id or 0) + 1  # MPNet's code has a fixed 1
