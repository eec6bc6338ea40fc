"""Prompt embeddings of Wan: the reference's numbers and cleaning, cut to true lengths."""

from __future__ import annotations

import html
import re
from pathlib import Path

import ftfy
import pytest
import torch
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from models.errors import CheckpointError
from models.wan.prompt_cleaning import clean_prompt
from models.wan.spec import NEGATIVE_PROMPT
from models.wan.text_encoder import WanTextEncoder
from models.wan.umt5 import Umt5Encoder
from tests.models.runs import relative_error
from tests.models.wan.tiny_umt5 import END, make_reference, write_tokenizer

MAX_TOKENS = 12
PROMPTS = {
    "empty": "",
    "blank": " \n\t ",
    "short": "a red cat",
    "longer than the limit": "a red cat on the mat & " * 20,
    "exactly the limit": "cat " * (MAX_TOKENS - 1),
    "entities, escaped twice": "a cat &amp;amp; a dog &lt;3",
    "broken encoding": "a cafÃ© âœ” on the mat",
    "Chinese": "猫 on  the\r\n mat",
}


@pytest.fixture(scope="module")
def reference():
    return make_reference()


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wan")
    reference.save_pretrained(path / "text_encoder")
    write_tokenizer(path / "tokenizer.json")
    return path


def load(folder: Path, max_tokens: int = MAX_TOKENS) -> WanTextEncoder:
    return WanTextEncoder.load(
        folder / "text_encoder",
        folder / "tokenizer.json",
        device=torch.device("cpu"),
        dtype=torch.float32,
        max_tokens=max_tokens,
    )


@torch.no_grad()
def reference_embeddings(model, folder: Path, prompt: str) -> torch.Tensor:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>", eos_token="</s>"
    )
    text = html.unescape(html.unescape(ftfy.fix_text(prompt))).strip()
    text = re.sub(r"\s+", " ", text).strip()
    batch = tokenizer(
        [text],
        padding="max_length",
        truncation=True,
        max_length=MAX_TOKENS,
        add_special_tokens=True,
        return_tensors="pt",
    )
    states = model(batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    return states[0, : int(batch.attention_mask.sum())]


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_embeddings_equal_the_reference(reference, folder: Path, prompt: str) -> None:
    ours = load(folder).encode(prompt)
    theirs = reference_embeddings(reference, folder, prompt)
    assert ours.shape == theirs.shape
    # Rounding of float32 matrix products in another order.
    assert relative_error(ours, theirs) <= 1e-5


def test_cleaning_repairs_unescapes_twice_and_collapses_space() -> None:
    assert clean_prompt("  a\tcat\n\n&amp;amp;  dog\u00a0") == "a cat & dog"
    assert clean_prompt("cafÃ©") == "café"
    assert (
        clean_prompt("Keeps CASE, _underscores_ and 标点。")
        == "Keeps CASE, _underscores_ and 标点。"
    )


def test_a_long_prompt_is_cut_and_keeps_its_end_token(folder: Path, monkeypatch) -> None:
    seen: list[list[int]] = []
    run = Umt5Encoder.hidden_states

    def recording(self: Umt5Encoder, token_ids: list[int]) -> torch.Tensor:
        seen.append(token_ids)
        return run(self, token_ids)

    monkeypatch.setattr(Umt5Encoder, "hidden_states", recording)
    encoder = load(folder)
    assert encoder.encode("cat " * 40).shape == (MAX_TOKENS, encoder.hidden_size)
    assert encoder.encode("").shape == (1, encoder.hidden_size)
    assert [ids[-1] for ids in seen] == [END, END]
    assert END not in seen[0][:-1]


def test_the_same_text_is_encoded_once(folder: Path) -> None:
    encoder = load(folder)
    assert encoder.encode("a  cat\n") is encoder.encode("a cat")
    assert encoder.encode("a dog") is not encoder.encode("a cat")


def test_the_memory_of_prompts_is_bounded_and_forgets_the_oldest(folder: Path) -> None:
    umt5 = Umt5Encoder.load(
        folder / "text_encoder", device=torch.device("cpu"), dtype=torch.float32
    )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoder = WanTextEncoder(tokenizer, umt5, max_cached=2)
    negative, cat = encoder.encode(NEGATIVE_PROMPT), encoder.encode("a cat")
    assert encoder.encode(NEGATIVE_PROMPT) is negative
    encoder.encode("a dog")
    assert encoder.encode(NEGATIVE_PROMPT) is negative
    assert encoder.encode("a cat") is not cat


def test_a_missing_or_broken_tokenizer_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text_encoder").symlink_to(folder / "text_encoder")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: no such file"):
        load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer"):
        load(tmp_path)


def test_a_tokenizer_that_does_not_fit_the_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text_encoder").symlink_to(folder / "text_encoder")
    path = write_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens([f"word{i}" for i in range(60)])
    tokenizer.save(str(path))
    with pytest.raises(CheckpointError, match=r"73 tokens, but .* embeds only 64"):
        load(tmp_path)
    tokenizer = Tokenizer.from_file(str(write_tokenizer(path)))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    tokenizer.save(str(path))
    with pytest.raises(CheckpointError, match="must put exactly one token, the end"):
        load(tmp_path)
