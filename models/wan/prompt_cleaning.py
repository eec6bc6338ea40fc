"""Prompts as people write them to prompts as Wan was trained on: text in, text out."""

from __future__ import annotations

import html
import re

import ftfy

_SPACE = re.compile(r"\s+")


def clean_prompt(prompt: str) -> str:
    """`prompt` with its encoding repaired, HTML entities resolved, and single spaces.

    Entities are resolved twice, since web pages escape text that was escaped before. Line breaks
    and tabs become spaces; case, punctuation and script stay. This is the "whitespace" cleaning of
    Wan's official release.

    >>> clean_prompt("  a cat &amp;amp; a\\n dog ")
    'a cat & a dog'
    """
    repaired = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return _SPACE.sub(" ", repaired).strip()
