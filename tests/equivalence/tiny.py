"""A tiny random checkpoint of each architecture that the engine's table names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCAB = 96
# `make test-gpu` compares on a GPU.
DEVICE = os.environ.get("XTRANSPLANT_TEST_DEVICE", "cpu")
_LLAMA = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
# Sliding windows are shorter than the test prompts, so that a wrong distance shows.
_WINDOW = {"sliding_window": 6, "max_window_layers": 2, "use_sliding_window": True}
_GEMMA = _LLAMA | {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2}
_GPT = {
    "vocab_size": VOCAB, "hidden_size": 32, "n_layer": 4, "n_head": 4, "n_embd": 32, "n_positions": 256,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_NEOX = _LLAMA | {"hidden_act": "gelu"}
_FALCON = {key: value for key, value in _LLAMA.items() if key != "head_dim"}

_VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip

# name of the case -> model_type, config values
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _LLAMA),
    "mistral": ("mistral", _LLAMA | {"sliding_window": 6}),
    "mixtral": ("mixtral", _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen2": ("qwen2", _LLAMA | _WINDOW),
    "qwen3": ("qwen3", _LLAMA),
    "gemma2": ("gemma2", _GEMMA | {"query_pre_attn_scalar": 8}),
    "gemma3_text": ("gemma3_text", _GEMMA | {"query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3", {"text_config": _GEMMA | {"query_pre_attn_scalar": 8}, "vision_config": _VISION}),
    "phi3": ("phi3", _LLAMA),
    "olmo2": ("olmo2", _LLAMA),
    "cohere": ("cohere", _LLAMA | {"logit_scale": 0.5}),
    "cohere2": ("cohere2", _GEMMA | {"logit_scale": 0.5}),
    "gpt2": ("gpt2", _GPT),
    "gpt_neox": ("gpt_neox", _NEOX),
    "gpt_neox_sequential": ("gpt_neox", _NEOX | {"use_parallel_residual": False}),
    "bloom": ("bloom", _GPT),
    "falcon": ("falcon", _FALCON | {"parallel_attn": True, "multi_query": True}),
    "falcon_new": ("falcon", _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_alibi": ("falcon", _FALCON | {"alibi": True, "parallel_attn": False, "multi_query": False}),
    "opt": ("opt", _LLAMA | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
}


def tiny(case: str, **changes: Any) -> PreTrainedModel:
    """A float32 model with weights large enough that layers, positions and masks matter to the logits."""
    kind, values = CASES[case]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(values | changes))
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.25)
            elif "norm" in name or "ln_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.normal_(0, 0.1)
    return model.float().eval().to(DEVICE)


def save_checkpoint(case: str, folder: Path, **changes: Any) -> Path:
    """A tiny checkpoint as a hub repository has it, with a byte-level tokenizer and a chat template."""
    tokenizer = Tokenizer(models.BPE(vocab={}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # Few merges: words become several tokens, choices too.
    trainer = trainers.BpeTrainer(vocab_size=len(special) + len(alphabet) + 20, special_tokens=special,
                                  initial_alphabet=sorted(alphabet), show_progress=False)  # fmt: skip
    tokenizer.train_from_iterator(["the answer is one of the choices: yes no maybe"] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        chat_template="{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant: {% endif %}",
    )  # fmt: skip
    fast.save_pretrained(folder)
    tiny(case, **{"vocab_size": len(fast), "max_position_embeddings": 512} | changes).save_pretrained(folder)
    return folder
