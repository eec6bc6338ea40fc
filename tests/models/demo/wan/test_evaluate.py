"""The examination of several forms: one seed for a prompt, and an exit code that tells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from models.demo.wan import evaluate
from models.demo.wan.captions import ClipPrompt
from models.demo.wan.evaluate import Score, shortfalls
from models.wan.pipeline import WanVacePipeline

FORMS = ["wan-vace-demo", "wan-vace-demo-q8_0", "wan-vace-demo-q4_k_m"]


def of(name: str, right: int, count: int = 100, **kind: bool) -> Score:
    return Score(name, (True,) * right + (False,) * (count - right), **kind)


def test_the_first_two_points_are_forgiven_to_eight_bits_and_no_more():
    plain = of("plain", 92, is_plain=True)
    assert shortfalls([plain, of("q8_0", 90, is_q8_0=True), of("q4", 90)]) == []
    plain = of("plain", 94, is_plain=True)
    assert shortfalls([plain, of("q4", 90), of("q8_0", 91, is_q8_0=True)]) == [
        "q8_0: more than 2 points below plain"
    ]


def test_any_form_below_the_target_is_told():
    assert shortfalls([of("plain", 90, is_plain=True), of("q4", 89)]) == [
        "q4: 89.0% is below 90%",
    ]


def test_differences_are_of_the_same_prompts():
    first = Score("plain", (True, True, False, False))
    other = Score("q4", (True, False, True, True))
    assert other.against(first) == "q4: +25.0 points to plain, 1 lost, 2 won"


@pytest.mark.parametrize(("lost", "code"), [((), 0), (("wan-vace-demo-q8_0",), 1)])
def test_each_form_is_scored_on_the_same_requests(monkeypatch, capsys, lost, code):
    """The forms themselves are loaded; only denoising and judging are made up."""
    seen: dict[str, list[str]] = {}

    class Verdict:
        reasons = ("made up",)

        def __init__(self, passed: bool) -> None:
            self.passed, self.right = passed, {"shape": passed}

    def examine(
        pipeline: WanVacePipeline, prompts: Sequence[ClipPrompt], **changes: object
    ) -> Iterator[tuple[ClipPrompt, Verdict, None]]:
        seen[pipeline.spec.id] = [prompt.text for prompt in prompts]
        for prompt in prompts:
            yield prompt, Verdict(pipeline.spec.id not in lost), None

    monkeypatch.setattr(evaluate, "examine", examine)
    threads = str(torch.get_num_threads())
    assert evaluate.main(["--prompts", "3", "--threads", threads, "--model", *FORMS]) == code
    assert list(seen) == FORMS
    assert seen[FORMS[0]] == seen[FORMS[1]] == seen[FORMS[2]]
    printed = capsys.readouterr().out
    assert "3 of 3 right = 100.0%, target 90%" in printed
    assert ("q8_0: more than 2 points below wan-vace-demo" in printed) == bool(lost)
