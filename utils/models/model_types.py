"""Which kinds of model each objective trains, by their `model_type`."""

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES


# Not the encoders that transformers also lists as causal, which would see the tokens they predict, nor XLNet, which
# permutes.
CAUSAL_MODELS = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(MODEL_FOR_MASKED_LM_MAPPING_NAMES) - {"xlnet"}
# Not Wav2Vec2 (audio) and Perceiver (images among others), which transformers lists too.
MASKED_MODELS = set(MODEL_FOR_MASKED_LM_MAPPING_NAMES) - {"wav2vec2", "perceiver"}
PERMUTATION_MODELS = {"xlnet"}
PRETRAINING_MODELS = {"albert", "bert", "ernie", "megatron-bert", "mobilebert"}  # with two heads, both tested
