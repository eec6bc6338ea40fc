"""The captions of the video demo and what they ask for.

`random_motion` picks what a clip shows, `caption` words it in one of many ways, `held_out_prompts`
gives the prompts of the examination: half of them have a colour-shape pair that no training clip
ever shows, the rest a combination with a background and a direction that none shows. Words that a
caption leaves out leave the clip free, and only what the words do say is judged.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

from models.demo.grammar import CORE_COLOURS, CORE_SHAPES
from models.demo.grammar import HELD_OUT_PAIRS as PICTURE_PAIRS
from models.demo.wan.clip_judge import DIRECTIONS, Motion
from models.demo.wan.clips import SIZES

# One for each shape, so that a shape is still seen in most colours.
HELD_OUT_PAIRS = frozenset({("red", "square"), ("blue", "triangle"), ("yellow", "circle")})

# Of the combinations without a held-out pair, one in so many is held out as well.
_HELD_OUT_EVERY = 12
_SEED = 20261124

_SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "circle", "disc", "ball"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
}
_COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "red", "crimson"),
    "green": ("green",),
    "blue": ("blue",),
    "yellow": ("yellow", "yellow", "golden"),
    "orange": ("orange",),
    "purple": ("purple", "purple", "violet"),
    "white": ("white",),
    "black": ("black",),
}
_SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
}
_DIRECTION_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("left", "left", "to the left", "leftwards", "from right to left"),
    "right": ("right", "right", "to the right", "rightwards", "from left to right"),
    "up": ("up", "up", "upwards", "from bottom to top"),
    "down": ("down", "down", "downwards", "from top to bottom"),
}
_VERBS = ("moving", "moving", "moving", "going", "sliding", "gliding", "travelling", "drifting")
_OPENINGS = ("", "", "", "", "a clip of ", "a video of ", "an animation of ", "show me ")
_BEHIND = ("on", "on", "on", "over", "against", "in front of")
_ANYTHING = ("shape", "thing", "object")


@dataclass(frozen=True)
class ClipPrompt:
    """One caption with what it asks for; `size` is that of the shape, None if it is left open."""

    text: str
    asked: Motion
    size: str | None = None


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def caption(
    asked: Motion, rng: random.Random, *, size: str | None = None, plain: bool = False
) -> str:
    """Word what is asked; `plain` gives the one form of the core grammar, for a whole `Motion`."""
    if plain:
        thing = _article(f"{asked.colour} {asked.shape}")
        ground = _article(f"{asked.background} background")
        return f"{thing} moving {asked.direction} on {ground}"
    words = [rng.choice(_SHAPE_WORDS[asked.shape] if asked.shape else _ANYTHING)]
    if asked.colour is not None:
        words.insert(0, rng.choice(_COLOUR_WORDS[asked.colour]))
    if size is not None:
        words.insert(0, rng.choice(_SIZE_WORDS[size]))
    thing = _article(" ".join(words))
    moving = ""
    if asked.direction is not None:
        moving = f" {rng.choice(_VERBS)} {rng.choice(_DIRECTION_WORDS[asked.direction])}"
    opening = rng.choice(_OPENINGS)
    if asked.background is None:
        return f"{opening}{thing}{moving}"
    colour = rng.choice(_COLOUR_WORDS[asked.background])
    ground = f"{rng.choice(_BEHIND)} {_article(colour)} background"
    forms = (
        f"{thing}{moving} {ground}",
        f"{thing}{moving} {ground}",
        f"{thing} {ground}{',' if moving else ''}{moving}",
        f"{colour} background, {thing}{moving}",
        f"{thing}{moving}, {colour} background",
    )
    return opening + rng.choice(forms)


def is_held_out(motion: Motion) -> bool:
    """Whether no training clip may show this; `motion` leaves nothing open."""
    return (motion.colour, motion.shape) in HELD_OUT_PAIRS or motion in _held_out_combinations()


@cache
def _held_out_combinations() -> frozenset[Motion]:
    others = [m for m in all_motions() if (m.colour, m.shape) not in PICTURE_PAIRS]
    return frozenset(random.Random(_SEED).sample(others, len(others) // _HELD_OUT_EVERY))


def all_motions() -> Iterator[Motion]:
    """Every combination of the core grammar."""
    for shape, colour, background, direction in product(
        CORE_SHAPES, CORE_COLOURS, CORE_COLOURS, DIRECTIONS
    ):
        if colour != background:
            yield Motion(shape, colour, background, direction)


def random_motion(rng: random.Random) -> tuple[Motion, str]:
    """What one training clip shows, and the size of its shape."""
    while True:
        colour, background = rng.sample(CORE_COLOURS, 2)
        motion = Motion(rng.choice(CORE_SHAPES), colour, background, rng.choice(tuple(DIRECTIONS)))
        if not is_held_out(motion):
            return motion, rng.choice(tuple(SIZES))


def training_prompt(
    motion: Motion,
    size: str,
    rng: random.Random,
    *,
    is_shown: bool = False,
    is_ground_shown: bool = False,
) -> ClipPrompt:
    """One caption of a training clip, whose colour may have no name.

    Some captions leave things out, so that the words for shapes and for colours are learnt apart.
    Those of a clip whose shape or background the model is shown some other way, too, may well leave
    out what that looks like.
    """
    if motion.colour is not None and rng.random() < 0.25:
        return ClipPrompt(caption(motion, rng, plain=True), motion)
    asked = motion
    if is_shown and rng.random() < 0.5:
        asked = replace(asked, shape=None, colour=None)
    elif rng.random() < 0.12:
        asked = replace(asked, colour=None)
    elif rng.random() < 0.06:
        asked = replace(asked, shape=None)
    if rng.random() < 0.06:
        asked = replace(asked, direction=None)
    if rng.random() < (0.4 if is_ground_shown else 0.06):
        asked = replace(asked, background=None)
    named = size if rng.random() < 0.4 else None
    return ClipPrompt(caption(asked, rng, size=named), asked, named)


def held_out_prompts(count: int = 100, seed: int = _SEED) -> list[ClipPrompt]:
    """The examination: distinct prompts that ask for what training never showed.

    Half of them are in the plain form of the core grammar, the rest worded freely.
    """
    rng = random.Random(seed)
    pairs: list[Motion] = []
    others: list[Motion] = []
    for motion in all_motions():
        if is_held_out(motion):
            is_pair = (motion.colour, motion.shape) in HELD_OUT_PAIRS
            (pairs if is_pair else others).append(motion)
    rng.shuffle(pairs)
    rng.shuffle(others)
    prompts: dict[str, ClipPrompt] = {}
    while len(prompts) < count:
        source = pairs if len(prompts) % 2 == 0 else others
        asked = source[(len(prompts) // 2) % len(source)]
        text = caption(asked, rng, plain=rng.random() < 0.5)
        prompts.setdefault(text, ClipPrompt(text, asked))
    return list(prompts.values())
