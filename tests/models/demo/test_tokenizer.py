"""The demo's tokenizer: lossless, compact on captions, in Gemma's form."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GemmaTokenizer

from models.demo.grammar import training_prompt
from models.demo.tokenizer import VOCABULARY, save_tokenizer
from models.sana.text_encoder import COMPLEX_HUMAN_INSTRUCTION

INSTRUCTION = "\n".join(COMPLEX_HUMAN_INSTRUCTION)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@given(text=st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"]), max_size=40))
def test_any_text_comes_back_as_it_went_in(tokenizer: Tokenizer, text: str) -> None:
    if "<" not in text:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_captions_take_about_a_token_a_word(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    texts = [training_prompt(rng).text for _ in range(200)]
    words = sum(len(text.split()) for text in texts)
    tokens = sum(len(tokenizer.encode(text).ids) - 1 for text in texts)
    assert tokens < 1.25 * words


def test_the_vocabulary_fits_the_text_encoder(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() <= VOCABULARY
    assert len(tokenizer.encode(INSTRUCTION).ids) < 300


def test_every_text_starts_with_exactly_one_bos(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("").tokens == ["<bos>"]
    assert tokenizer.encode("a red circle").tokens[0] == "<bos>"


def test_the_prompt_segment_starts_on_the_instructions_last_token(tokenizer: Tokenizer) -> None:
    alone = tokenizer.encode(INSTRUCTION).tokens
    joined = tokenizer.encode(INSTRUCTION + "a red circle").tokens
    assert joined[: len(alone) - 1] == alone[:-1]
    assert joined[len(alone) - 1 :] == ["▁a", "▁red", "▁circle"]


def test_transformers_loads_it_as_gemmas_and_gives_the_same_ids(
    folder: Path, tokenizer: Tokenizer
) -> None:
    loaded = AutoTokenizer.from_pretrained(str(folder))
    assert isinstance(loaded, GemmaTokenizer)
    for text in ("a red circle on a blue background", "", INSTRUCTION + "ein grüner Stern ☆"):
        assert loaded(text).input_ids == tokenizer.encode(text).ids


def test_the_same_seed_trains_the_same_tokenizer(folder: Path, tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    again = (tmp_path / "tokenizer.json").read_bytes()
    assert again == (folder / "tokenizer.json").read_bytes()
