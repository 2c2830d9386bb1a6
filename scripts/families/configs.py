"""Tiny random models of any transformers family, made by shrinking the fields of its configuration."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 99
# Size -> the fields that get it. Windows and chunks are shorter than the rows of the sweep, so that they have an
# effect.
SIZES = {
    32: "hidden_size d_model n_embd emb_dim embedding_size embedding_dim input_embedding_size output_embedding_size "
    "attention_hidden_size lru_width word_embed_proj_dim mamba_d_ssm backbone_hidden_size dim_model",
    64: "intermediate_size decoder_ffn_dim encoder_ffn_dim ffn_dim moe_intermediate_size n_inner d_inner dff dim_ff "
    "shared_expert_intermediate_size shared_intermediate_size ffn_hidden_size expert_ffn_hidden_size "
    "moe_shared_expert_intermediate_size shared_experts_intermediate_size dense_intermediate_size "
    "intermediate_size_mlp feed_forward_size",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers "
    "num_encoder_layers num_key_value_heads num_kv_heads swa_num_key_value_heads num_experts_per_tok moe_topk moe_k "
    "num_experts_per_token num_query_groups num_blocks type_vocab_size attn_layer_period expert_layer_period "
    "layer_group_size",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads "
    "num_encoder_attention_heads num_decoder_attention_heads num_experts n_routed_experts num_local_experts "
    "moe_num_experts linear_num_key_heads linear_num_value_heads linear_num_heads swa_num_attention_heads "
    "mamba_n_heads n_mamba_heads mamba_num_heads mamba_dt_rank time_step_rank rotary_dim index_topk",
    8: "head_dim dim_head qk_rope_head_dim qk_nope_head_dim v_head_dim d_head linear_key_head_dim kv_channels "
    "linear_value_head_dim linear_head_dim swa_head_dim index_head_dim attention_head_dim attention_head_size "
    "global_head_dim swa_v_head_dim sliding_window sliding_window_size attention_window_size attention_chunk_size "
    "mamba_d_state state_size ssm_state_size mamba_chunk_size chunk_size",
    16: "kv_lora_rank q_lora_rank mamba_d_head mamba_head_dim mamba_headdim qk_head_dim o_lora_rank index_n_heads "
    "pronunciation_embed_dim shape_embed_dim",
    20: "pronunciation_vocab_size shape_vocab_size",
    1: "topk_group n_group num_expert_group n_shared_experts num_shared_experts moe_num_shared_experts "
    "mamba_n_groups n_groups mamba_ngroups first_k_dense_replace attn_layer_offset num_dense_layers",
    VOCABULARY: "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size",
    128: "max_position_embeddings n_positions n_ctx max_seq_len model_max_length context_length",
}
BY_NAME = {name: size for size, names in SIZES.items() for name in names.split()}
TOKENS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
# Fields that some families leave empty although their layers need them.
EMPTY = {"head_dim": 8, "num_key_value_heads": 2, "n_routed_experts": 4, "n_shared_experts": 1} | {
    "num_experts_per_tok": 2,
    "swa_head_dim": 8,
}
HYBRID = ["linear_attention", "linear_attention", "hybrid"] * 2
# Family-specific values that the rules above do not cover.
OWN: dict[str, dict[str, Any]] = {
    "dots1": {"first_k_dense_replace": 1},
    "falcon_h1": {"mamba_d_head": 8, "lm_head_multiplier": 2.5},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "bamba": {"attn_layer_indices": [1]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "recurrent_gemma": {
        "num_hidden_layers": 3,
        "block_types": ["recurrent", "recurrent", "attention"],
        "logits_soft_cap": 1.0,
    },
    "zamba": {
        **{"num_hidden_layers": 6, "layers_block_type": HYBRID, "attention_hidden_size": 64},
        **{"attention_head_dim": 16, "n_mamba_heads": 2},
    },
    "zamba2": {
        **{"num_hidden_layers": 6, "layers_block_type": HYBRID, "attention_hidden_size": 64},
        **{"attention_head_dim": 16, "n_mamba_heads": 4, "mamba_headdim": 16},
    },
    "zaya": {"num_experts_per_tok": 1},
    "xmod": {"default_language": "en_XX"},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local", "lsh"]},
    "xlstm": {"num_heads": 2},
    "perceiver": {"num_latents": 8, "d_latents": 32, "num_self_attends_per_block": 2},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    "gemma3n_text": {
        **{"num_hidden_layers": 4, "num_kv_shared_layers": 2, "intermediate_size": [64] * 4},
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        **{"activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0], "hidden_size_per_layer_input": 8, "laurel_rank": 4},
    },
}


def tiny(kind: str, auto_class: Any = AutoModelForCausalLM, **changes: Any) -> PreTrainedModel:
    """Return a random model of a family, always the same, with every dropout of its configuration at 0.3."""
    family = CONFIG_MAPPING[kind]
    config = family(**{**shrunk(family), **OWN.get(kind, {}), **changes})
    try:
        return _random(_with_dropout(config), auto_class)
    except ValueError:  # a family that allows no dropout
        return _random(config, auto_class)


def _random(config: Any, auto_class: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = auto_class.from_config(config)
    return model


def _with_dropout(config: Any) -> Any:
    config = copy.deepcopy(config)
    for part in (config, config.get_text_config()):
        for name, value in part.to_dict().items():
            if isinstance(value, float) and ("drop" in name or "jitter" in name):
                setattr(part, name, 0.3)
    return config


def shrunk(family: Any) -> dict[str, Any]:
    """Return the arguments of a configuration class that make it small, including sub-configurations."""
    default = family()
    fields, parts = default.to_dict(), getattr(family, "sub_configs", None) or {}
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if name in parts:
            kind = type(getattr(default, name)) if parts[name] is AutoConfig else parts[name]
            if getattr(default, name) is not None:
                found[name] = {**shrunk(kind), **({"model_type": kind.model_type} if kind is not parts[name] else {})}
        elif name in TOKENS and not isinstance(value, list):
            found[name] = TOKENS[name]
        elif name in BY_NAME and isinstance(value, int) and not isinstance(value, bool):
            found[name] = BY_NAME[name]
        elif name in EMPTY and value is None:
            found[name] = EMPTY[name]
        elif name in ("initializer_range", "init_std"):
            found[name] = 0.2
    if fields.get("kv_lora_rank"):  # latent attention has separate keys and values for every head
        found["num_key_value_heads"] = 4
    if "qk_rope_head_dim" in found:
        found.pop("qk_head_dim", None)
    return found | _layer_types(fields, found)


def _layer_types(fields: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return one layer of every type that the family has, at least two."""
    types: dict[str, Any] = {}
    if isinstance(fields.get("layer_types"), list) and "num_hidden_layers" in found:
        kinds = list(dict.fromkeys(fields["layer_types"]))
        types["layer_types"] = kinds * 2 if len(kinds) == 1 else kinds
        types["num_hidden_layers"] = len(types["layer_types"])
    if isinstance(fields.get("mlp_layer_types"), list) and "num_hidden_layers" in found:
        kinds = list(dict.fromkeys(fields["mlp_layer_types"])) * 4
        types["mlp_layer_types"] = kinds[: types.get("num_hidden_layers", found["num_hidden_layers"])]
    return types
