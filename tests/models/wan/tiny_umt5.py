"""A tiny UMT5 encoder of transformers, and its weights under the names of every kind of file."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

WORDS = ("a", "red", "blue", "cat", "dog", "&", "on", "the", "mat", "猫")
VOCABULARY = 64
END = 1


def make_reference(**changes: int | str) -> UMT5EncoderModel:
    """Weights large enough that position, gate and every layer move the result."""
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 3, "num_heads": 4}
    config = UMT5Config(vocab_size=VOCABULARY, **{**sizes, **changes})
    model = UMT5EncoderModel(config).eval()
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1.0 if parameter.ndim == 1 or "bias" in name or "shared" in name else 0.2
            parameter.normal_(0, scale, generator=random)
    return model


def transformers_weights(model: UMT5EncoderModel) -> dict[str, Tensor]:
    """Without the second name of the embedding table."""
    state = model.state_dict()
    return {name: state[name] for name in state if name != "encoder.embed_tokens.weight"}


def renamed(weights: dict[str, Tensor], form: str) -> dict[str, Tensor]:
    """Under the names of Wan's release ("wan") or of GGUF files ("gguf")."""
    to = {
        "wan": {
            "shared": "token_embedding",
            "encoder.final_layer_norm": "norm",
            "encoder.block": "blocks",
            "layer.0.layer_norm": "norm1",
            "layer.1.layer_norm": "norm2",
            "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
            "layer.0.SelfAttention.": "attn.",
            "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
            "layer.1.DenseReluDense.wi_1": "ffn.fc1",
            "layer.1.DenseReluDense.wo": "ffn.fc2",
        },
        "gguf": {
            "shared": "token_embd",
            "encoder.final_layer_norm": "enc.output_norm",
            "encoder.block": "enc.blk",
            "layer.0.layer_norm": "attn_norm",
            "layer.1.layer_norm": "ffn_norm",
            "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
            "layer.0.SelfAttention.": "attn_",
            "layer.1.DenseReluDense.wi_0": "ffn_gate",
            "layer.1.DenseReluDense.wi_1": "ffn_up",
            "layer.1.DenseReluDense.wo": "ffn_down",
        },
    }[form]
    pattern = re.compile("|".join(map(re.escape, to)))
    return {pattern.sub(lambda match: to[match[0]], name): w for name, w in weights.items()}


def write_gguf(
    path: Path,
    weights: dict[str, Tensor],
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q8_0,
    architecture: str = "t5encoder",
) -> dict[str, Tensor]:
    """Write weights in names of transformers as the community does; returns what the file holds.

    Matrices and the embedding table are quantised, norms and position biases are not.
    """
    writer = gguf.GGUFWriter(path, architecture)
    stored: dict[str, Tensor] = {}
    for (name, tensor), new_name in zip(weights.items(), renamed(weights, "gguf"), strict=True):
        values = tensor.numpy()
        if values.ndim == 2 and "bias" not in name:
            data = gguf.quants.quantize(values, kind)
            writer.add_tensor(new_name, data, raw_dtype=kind)
            values = gguf.quants.dequantize(data, kind)
        else:
            writer.add_tensor(new_name, values)
        stored[name] = torch.from_numpy(np.array(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def write_tokenizer(path: Path) -> Path:
    """Words and single spaces, an end token after every text; unknown words are one token."""
    vocabulary = {"<pad>": 0, "</s>": END, "<unk>": 2}
    for word in WORDS:
        vocabulary[word] = len(vocabulary)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", END)]
    )
    tokenizer.save(str(path))
    return path
