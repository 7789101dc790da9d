"""Hugging Face text towers that are made here, as none can be downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers


def text_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """text_cfg of a tokenizer alone ("siglip") and with a text tower ("bert"), named by a folder.

    They are written into the folder.
    """
    words = {word: number for number, word in enumerate(["<pad>", "<unk>", "a", "cat", "dog"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
    )
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    name = str(folder)
    return {
        "siglip": {
            **{"hf_tokenizer_name": name, "tokenizer_kwargs": {"clean": "canonicalize"}},
            **{"context_length": 6, "vocab_size": 8, "width": 16, "heads": 2, "layers": 1},
            **{"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
        },
        "bert": {
            **{"hf_tokenizer_name": name, "hf_model_name": name, "context_length": 6},
            **{"hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp"},
        },
    }
