"""The captions of the image demo and the scenes they stand for.

A `Scene` is the truth of one picture; `caption` words it in one of many ways, `random_scene` picks
one for training, `held_out_prompts` gives the prompts of the examination, whose colour-shape pairs
no training caption ever holds together. Words a caption leaves out leave the scene free: `Asked`
keeps what the words do say, and only that is judged.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from models.demo.colours import COLOUR_NAMES
from models.demo.shapes import SHAPES

Grammar = Literal["core", "full"]

CORE_SHAPES = ("circle", "square", "triangle")
CORE_COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black")

# Radius as a share of the picture's shorter side.
SIZES: dict[str, float] = {"small": 0.145, "medium": 0.19, "large": 0.255}
# Centres as (x, y) shares of width and height; a large shape still lies inside the picture.
POSITIONS: dict[str, tuple[float, float]] = {
    "top left": (0.27, 0.27),
    "top": (0.5, 0.27),
    "top right": (0.73, 0.27),
    "left": (0.27, 0.5),
    "center": (0.5, 0.5),
    "right": (0.73, 0.5),
    "bottom left": (0.27, 0.73),
    "bottom": (0.5, 0.73),
    "bottom right": (0.73, 0.73),
}

# Colour-shape pairs that training never sees together, in any caption or picture.
HELD_OUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    {
        ("red", "square"),
        ("blue", "triangle"),
        ("yellow", "circle"),
        ("green", "star"),
        ("purple", "cross"),
        ("orange", "ring"),
        ("white", "diamond"),
        ("pink", "triangle"),
        ("black", "square"),
        ("cyan", "circle"),
    }
)

_SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "dot", "ball"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "diamond": ("diamond", "rhombus"),
    "ring": ("ring", "donut", "hoop"),
    "cross": ("cross", "plus sign", "plus"),
}
_COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson"),
    "green": ("green",),
    "blue": ("blue",),
    "yellow": ("yellow", "golden"),
    "orange": ("orange",),
    "purple": ("purple", "violet"),
    "white": ("white",),
    "black": ("black",),
    "pink": ("pink", "rosy"),
    "cyan": ("cyan", "turquoise"),
}
_SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "tiny", "little"),
    "medium": ("medium", "medium-sized"),
    "large": ("large", "big", "huge"),
}
_POSITION_WORDS: dict[str, tuple[str, ...]] = {
    "top left": ("at the top left", "in the top left corner", "in the upper left"),
    "top": ("at the top", "near the top"),
    "top right": ("at the top right", "in the top right corner", "in the upper right"),
    "left": ("on the left", "at the left"),
    "center": ("in the center", "in the middle", "in the centre"),
    "right": ("on the right", "at the right"),
    "bottom left": ("at the bottom left", "in the bottom left corner", "in the lower left"),
    "bottom": ("at the bottom", "near the bottom"),
    "bottom right": ("at the bottom right", "in the bottom right corner", "in the lower right"),
}
_OPENINGS = (
    "",
    "",
    "",
    "a picture of ",
    "an image of ",
    "a photo of ",
    "a simple drawing of ",
    "draw ",
    "show me ",
)
_BEHIND = ("on", "on", "over", "against")


@dataclass(frozen=True)
class Asked:
    """What a caption says; None where it leaves the matter open."""

    shape: str
    colour: str
    background: str | None
    size: str | None = None
    position: str | None = None


@dataclass(frozen=True)
class Prompt:
    """One caption with what it asks for."""

    text: str
    asked: Asked


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def caption(asked: Asked, rng: random.Random, *, plain: bool = False) -> str:
    """Word a scene; `plain` gives the one form of the core grammar, which names a background."""
    if plain and asked.background is not None:
        thing = _article(f"{asked.colour} {asked.shape}")
        return f"{thing} on {_article(asked.background)} background"
    words = [rng.choice(_COLOUR_WORDS[asked.colour]), rng.choice(_SHAPE_WORDS[asked.shape])]
    if asked.size is not None:
        words.insert(0, rng.choice(_SIZE_WORDS[asked.size]))
    phrase = " ".join(words)
    thing = rng.choice((_article(phrase), _article(phrase), "one " + phrase))
    opening = rng.choice(_OPENINGS)
    place = ""
    if asked.position is not None:
        place = " " + rng.choice(_POSITION_WORDS[asked.position])
    if asked.background is None:
        return f"{opening}{thing}{place}"
    ground = rng.choice(_COLOUR_WORDS[asked.background])
    on = f"{rng.choice(_BEHIND)} {_article(ground)} background"
    forms = (
        f"{thing} {on}{place}",
        f"{thing} {on}{place}",
        f"{thing}{place} {on}",
        f"{ground} background, {thing}{place}",
        f"{thing}, {ground} background{place}",
        f"{thing}{place} on {ground}",
    )
    return opening + rng.choice(forms)


def is_held_out(asked: Asked) -> bool:
    return (asked.colour, asked.shape) in HELD_OUT_PAIRS


def random_asked(rng: random.Random, grammar: Grammar, *, held_out: bool | None = False) -> Asked:
    """Pick what to ask for: only held-out pairs, none of them (False), or either (None)."""
    core = grammar == "core"
    colours, shapes = (CORE_COLOURS, CORE_SHAPES) if core else (COLOUR_NAMES, SHAPES)
    while True:
        colour, background = rng.sample(colours, 2)
        size = position = None
        if not core:
            size = rng.choice((None, *SIZES))
            position = None if rng.random() < 0.3 else rng.choice(tuple(POSITIONS))
        asked = Asked(rng.choice(shapes), colour, background, size, position)
        if held_out is None or is_held_out(asked) == held_out:
            return asked


def training_prompt(rng: random.Random) -> Prompt:
    """One caption of the training set: mostly the full grammar, some plain, some terse."""
    kind = rng.random()
    if kind < 0.2:
        asked = random_asked(rng, "core" if kind < 0.1 else "full")
        asked = Asked(asked.shape, asked.colour, asked.background)
        return Prompt(caption(asked, rng, plain=True), asked)
    asked = random_asked(rng, "full")
    if kind < 0.25:
        asked = Asked(asked.shape, asked.colour, None, asked.size, asked.position)
    return Prompt(caption(asked, rng), asked)


def held_out_prompts(grammar: Grammar, count: int = 300, seed: int = 20261123) -> list[Prompt]:
    """The examination: distinct prompts, half of them with a colour-shape pair never trained on.

    The core grammar has only 168 plain captions, so half of its prompts use other wordings.
    """
    rng = random.Random(f"{grammar}-{seed}")
    prompts: dict[str, Prompt] = {}
    while len(prompts) < count:
        pair = len(prompts) % 2 == 0
        asked = random_asked(rng, grammar, held_out=pair)
        text = caption(asked, rng, plain=grammar == "core" and rng.random() < 0.5)
        prompts.setdefault(text, Prompt(text, asked))
    return list(prompts.values())


@dataclass(frozen=True)
class Scene:
    """One picture to draw: names of shape and colours, centre and radius as shares of the sides."""

    shape: str
    colour: str
    background: str
    center: tuple[float, float]
    radius: float


def random_scene(asked: Asked, rng: random.Random) -> Scene:
    """A picture that fits a caption: what it names nearly exactly, what it leaves open at random.

    Without a size the radius is about medium, without a position the centre is about the middle.
    """
    background = asked.background
    if background is None:
        background = rng.choice([name for name in COLOUR_NAMES if name != asked.colour])
    if asked.size is None:
        radius = SIZES["medium"] * rng.uniform(0.94, 1.06)
    else:
        radius = SIZES[asked.size] * rng.uniform(0.98, 1.02)
    x, y = POSITIONS[asked.position or "center"]
    reach = 0.006 if asked.position else 0.02
    center = (x + rng.uniform(-reach, reach), y + rng.uniform(-reach, reach))
    return Scene(asked.shape, asked.colour, background, center, radius)
