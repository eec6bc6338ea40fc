"""Prompt embeddings: the reference's numbers, without its padding and without its repetition."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from models.errors import CheckpointError, UnsupportedCheckpoint
from models.sana.gemma2 import Gemma2Stack
from models.sana.gemma2_layers import Gemma2, Gemma2Config
from models.sana.text_encoder import (
    COMPLEX_HUMAN_INSTRUCTION,
    MAX_SEQUENCE_LENGTH,
    SanaTextEncoder,
)
from tests.models.runs import relative_error
from tests.models.tiny import edit_json

CPU = torch.device("cpu")
TOLERANCE = 1e-5

PROMPTS = {
    "empty": "",
    "blank": " \n\t ",
    "short": "a red circle on a blue background",
    "upper case and spaces": "  A Fluffy CAT ",
    "longer than the limit": "a red circle and " * 150,
    "one word of 5000 letters": "z" * 5000,
    "Chinese and emoji": "一只戴帽子的猫 🐱🎩, naïve café",
    "control and zero-width characters": "a\u200bb\u0000c\r\n\td",
    "special tokens written out": "<pad><bos> a <eos> cat <0x41>",
    "punctuation that could merge backwards": ":: ) -> x",
}


def load(folder: Path) -> SanaTextEncoder:
    return SanaTextEncoder.load(folder, device=CPU, dtype=torch.float32)


@pytest.fixture(scope="module")
def encoder(tiny_checkpoint: Path) -> SanaTextEncoder:
    return load(tiny_checkpoint)


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Any:
    import diffusers

    return diffusers.SanaPipeline.from_pretrained(tiny_checkpoint, transformer=None, vae=None)


@torch.no_grad()
def reference_embeddings(pipeline: Any, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    positive, positive_mask, negative, negative_mask = pipeline.encode_prompt(
        prompt,
        negative_prompt=prompt,
        complex_human_instruction=list(COMPLEX_HUMAN_INSTRUCTION),
        device=CPU,
    )
    return positive[0][positive_mask[0].bool()], negative[0][negative_mask[0].bool()]


def test_the_instruction_is_word_for_word_the_published_one() -> None:
    import inspect

    from diffusers import SanaPipeline

    parameters = inspect.signature(SanaPipeline.__call__).parameters
    assert tuple(parameters["complex_human_instruction"].default) == COMPLEX_HUMAN_INSTRUCTION


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_embeddings_equal_the_reference(
    encoder: SanaTextEncoder, reference: Any, prompt: str
) -> None:
    positive, negative = reference_embeddings(reference, prompt)
    ours, ours_negative = encoder.encode(prompt), encoder.encode(prompt, "negative")
    assert ours.shape == positive.shape
    assert ours_negative.shape == negative.shape
    assert relative_error(ours, positive) <= TOLERANCE
    assert relative_error(ours_negative, negative) <= TOLERANCE


def test_the_comparison_would_notice_one_token_or_a_lost_window(
    encoder: SanaTextEncoder, reference: Any, tiny_copy: Path
) -> None:
    positive, _ = reference_embeddings(reference, "a red circle")
    assert relative_error(encoder.encode("x red circle")[:3], positive[:3]) > 10 * TOLERANCE
    edit_json(tiny_copy / "text_encoder" / "config.json", sliding_window=4096)
    assert relative_error(load(tiny_copy).encode("a red circle"), positive) > 10 * TOLERANCE


def test_a_long_prompt_keeps_the_first_300_positions(encoder: SanaTextEncoder) -> None:
    long = encoder.encode("a red circle and " * 150)
    longer = encoder.encode("a red circle and " * 200)
    assert len(long) == MAX_SEQUENCE_LENGTH
    assert torch.equal(long, longer)
    assert len(encoder.encode("a red circle and " * 150, "negative")) == MAX_SEQUENCE_LENGTH


def test_case_and_surrounding_space_do_not_matter(encoder: SanaTextEncoder) -> None:
    assert encoder.encode(" A Cat\n") is encoder.encode("a cat")


def test_the_same_text_has_different_embeddings_in_each_role(encoder: SanaTextEncoder) -> None:
    positive, negative = encoder.encode("a cat"), encoder.encode("a cat", "negative")
    assert positive.shape != negative.shape or not torch.equal(positive, negative)


def test_only_the_prompt_runs_once_the_instruction_is_known(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load(tiny_checkpoint)
    run: list[int] = []
    forward = Gemma2Stack._forward

    def counting(self: Gemma2Stack, token_ids: list[int], cache: Any) -> torch.Tensor:
        run.append(len(token_ids))
        return forward(self, token_ids, cache)

    monkeypatch.setattr(Gemma2Stack, "_forward", counting)
    first = encoder.encode("a red circle on a blue background")
    assert len(run) == 2
    instruction, prompt = run
    # BOS comes out of the instruction's run, so the prompt's costs one token less than it has.
    assert prompt == len(first) - 1 < 20 < instruction
    encoder.encode("a yellow square")
    encoder.encode("a yellow square")
    assert len(run) == 3


def test_the_order_of_prompts_does_not_change_an_embedding(tiny_checkpoint: Path) -> None:
    one, other = load(tiny_checkpoint), load(tiny_checkpoint)
    first = one.encode("a red circle"), one.encode("一只猫")
    second = other.encode("一只猫"), other.encode("a red circle")
    assert torch.equal(first[0], second[1])
    assert torch.equal(first[1], second[0])


def test_the_memory_of_prompts_is_bounded_and_drops_the_least_recent(
    tiny_checkpoint: Path,
) -> None:
    loaded = load(tiny_checkpoint)
    encoder = SanaTextEncoder(loaded._tokenizer, loaded._stack, max_cached=2)
    kept = encoder.encode("one")
    dropped = encoder.encode("two")
    assert encoder.encode("one") is kept
    encoder.encode("three")
    assert encoder.encode("one") is kept
    again = encoder.encode("two")
    assert again is not dropped
    assert torch.equal(again, dropped)


def test_bfloat16_stays_close_to_float32(tiny_checkpoint: Path, encoder: SanaTextEncoder) -> None:
    half = SanaTextEncoder.load(tiny_checkpoint, device=CPU, dtype=torch.bfloat16)
    embeds = half.encode("a red circle")
    assert embeds.dtype == torch.bfloat16
    assert relative_error(embeds.float(), encoder.encode("a red circle")) < 0.05


def test_a_missing_tokenizer_is_named(tiny_copy: Path) -> None:
    shutil.rmtree(tiny_copy / "tokenizer")
    with pytest.raises(CheckpointError, match=r"tokenizer.tokenizer\.json: no such file"):
        load(tiny_copy)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"model": 7}'])
def test_a_broken_tokenizer_is_named(tiny_copy: Path, content: bytes) -> None:
    (tiny_copy / "tokenizer" / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer: ") as caught:
        load(tiny_copy)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_bos_is_refused(tiny_copy: Path) -> None:
    edit_json(tiny_copy / "tokenizer" / "tokenizer.json", post_processor=None)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: must put exactly one token, BOS"):
        load(tiny_copy)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tiny_copy: Path) -> None:
    path = tiny_copy / "tokenizer" / "tokenizer.json"
    model = json.loads(path.read_text())["model"]
    model["vocab"]["a-token-too-many"] = len(model["vocab"])
    edit_json(path, model=model)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: 401 tokens, but .* only 400"):
        load(tiny_copy)


def test_another_text_model_is_refused_by_its_type(tiny_copy: Path) -> None:
    edit_json(tiny_copy / "text_encoder" / "config.json", model_type="t5")
    with pytest.raises(UnsupportedCheckpoint, match=r"model_type is 't5', supported: 'gemma2'"):
        load(tiny_copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "wide"}, "hidden_size is 'wide', must be a positive number"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, must be a positive number"),
        ({"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads 3"),
        ({"head_dim": 7}, "head_dim is 7, must be even"),
        ({"layer_types": ["full_attention"] * 2}, "layer_types is .*, supported: "),
        ({"attention_bias": True}, "attention_bias is True, supported: False"),
        ({"hidden_activation": "relu"}, "hidden_activation is 'relu', supported: 'gelu_pytorch"),
        ({"rope_parameters": [1]}, "rope_parameters is .*, must be an object"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn', supported: 'default'"),
    ],
)
def test_an_unsupported_configuration_names_key_and_value(
    tiny_copy: Path, change: dict[str, Any], message: str
) -> None:
    edit_json(tiny_copy / "text_encoder" / "config.json", **change)
    with pytest.raises(UnsupportedCheckpoint, match=rf"text_encoder.config\.json: .*{message}"):
        load(tiny_copy)


def test_rotary_settings_are_read_in_both_spellings(tiny_checkpoint: Path) -> None:
    config = json.loads((tiny_checkpoint / "text_encoder" / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 5000.0}
    new = Gemma2Config.from_json(config)
    del config["rope_parameters"]
    assert Gemma2Config.from_json(config | {"rope_theta": 5000.0}) == new
    assert new.rope_theta == 5000.0


def test_an_uncapped_model_equals_the_reference() -> None:
    from transformers import Gemma2Config as ReferenceConfig
    from transformers import Gemma2Model

    config = ReferenceConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, head_dim=10,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=5, query_pre_attn_scalar=7,
        attn_logit_softcapping=None,
    )  # fmt: skip
    torch.manual_seed(0)
    reference = Gemma2Model(config).eval()
    ours = Gemma2(Gemma2Config.from_json(config.to_dict()))
    ours.load_state_dict(reference.state_dict())
    token_ids = torch.randint(64, (17,))
    with torch.no_grad():
        expected = reference(token_ids[None]).last_hidden_state[0]
        assert relative_error(ours(token_ids)[0], expected) <= TOLERANCE
