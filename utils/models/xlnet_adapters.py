"""Adapters in XLNet, a model that the `adapters` library does not support."""

import types

import torch
from torch import nn
from transformers import PreTrainedModel


def init_xlnet(model: PreTrainedModel) -> None:
    """Prepare an XLNet for adapters: `adapters.init` with an interface that describes XLNet to the library."""
    import adapters

    adapters.init(model, interface=_xlnet_interface(model))


def _xlnet_interface(model: PreTrainedModel):
    """Describe where bottleneck adapters are inserted in an XLNet.

    XLNet's projections are bare parameters, to which the library cannot attach an adapter. So each attention layer
    gets an identity module at its output for the first adapter of double_seq_bn. It changes neither the model's
    results nor its weights.
    """
    import adapters

    for layer in model.transformer.layer:
        layer.rel_attn.attention_output = nn.Identity()
        layer.rel_attn.post_attention = types.MethodType(_post_attention, layer.rel_attn)
    return adapters.AdapterModelInterface(
        adapter_methods=["bottleneck"],
        model_embeddings="word_embedding",
        model_layers="layer",
        layer_self_attn="rel_attn",
        layer_cross_attn=None,
        attn_q_proj="q",
        attn_k_proj="k",
        attn_v_proj="v",
        attn_o_proj="attention_output",
        layer_intermediate_proj="ff.layer_1",
        layer_output_proj="ff.layer_2",
        layer_pre_ffn="ff",
        layer_ln_1="rel_attn.layer_norm",
        layer_ln_2="ff.layer_norm",
    )


def _post_attention(self, h: torch.Tensor, attn_vec: torch.Tensor, residual: bool = True) -> torch.Tensor:
    """XLNetRelativeAttention.post_attention, with its output passed through `attention_output`."""
    attn_out = self.attention_output(torch.einsum("ibnd,hnd->ibh", attn_vec, self.o))
    attn_out = self.dropout(attn_out)
    return self.layer_norm(attn_out + h if residual else attn_out)
