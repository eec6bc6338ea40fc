"""The video demo's tokenizer keeps captions short and loses no text."""

from __future__ import annotations

import random

import pytest
from transformers import AutoTokenizer

from models.demo.wan.captions import random_motion, training_prompt
from models.demo.wan.clip_tokenizer import SPECIAL_TOKENS, VOCABULARY, save_tokenizer
from models.demo.wan.clip_tokenizer import train_tokenizer as train


@pytest.fixture(scope="module")
def tokenizer():
    return train()


def test_special_tokens_are_where_umt5_has_them(tokenizer):
    assert SPECIAL_TOKENS == ("<pad>", "</s>", "<s>", "<unk>")
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3]
    assert tokenizer.get_vocab_size() <= VOCABULARY


def test_every_word_of_a_caption_is_one_token(tokenizer):
    rng = random.Random(3)
    for _ in range(200):
        text = training_prompt(*random_motion(rng), rng).text
        words = text.replace(",", " ,").split()
        # A comma follows a word without a space.
        assert len(tokenizer.encode(text).ids) == len(words) + 1


@pytest.mark.parametrize(
    "text", ["a red circle", "zebra, quite 7!", "\u00e9t\u00e9 \u6c49\u5b57", ""]
)
def test_any_text_survives_and_ends_with_the_end_token(tokenizer, text):
    encoding = tokenizer.encode(text)
    assert encoding.ids[-1] == 1
    assert 3 not in encoding.ids
    assert tokenizer.decode(encoding.ids) == text


def test_case_and_spaces_do_not_matter(tokenizer):
    plain = tokenizer.encode("a red circle").ids
    assert tokenizer.encode("  A  Red\nCircle ").ids == plain


def test_it_loads_with_transformers(tokenizer, tmp_path):
    save_tokenizer(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "a red circle moving left"
    assert loaded(text).input_ids == tokenizer.encode(text).ids
    assert (loaded.pad_token_id, loaded.eos_token_id) == (0, 1)
