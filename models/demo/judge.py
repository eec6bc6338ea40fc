"""The automatic judge: reads background, colour, shape, size and position from the pixels.

`read` takes a picture apart without knowing what was asked; `judge` compares that reading with the
caption's `Asked` and gives a verdict with reasons. The background is the colour of the frame, the
foreground what departs from it; every shape of the grammar is then fitted to the foreground in
place and size, and the best fit must be the asked shape, with an outline that is off by no more
than a few hundredths of its radius on average. Blurs, blanks and noise fit nothing.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.demo.colours import COLOUR_NAMES, COLOURS
from models.demo.grammar import POSITIONS, SIZES, Asked
from models.demo.shapes import SHAPES, coverage

# Distances between colours are Euclidean in sRGB, 0 to 441; the palette's closest pair is 79 apart.
COLOUR_TOLERANCE = 36.0
# Mean distance between outline and ideal outline, in radii.
OUTLINE_TOLERANCE = 0.05
# Pixels further than this from every mixture of the two colours are stray; so many of them, as a
# share of the shape, are let pass.
STRAY_DISTANCE, STRAY_TOLERANCE = 60.0, 0.08
# Pixels of the frame that may differ from its median: a faint line along the edge is let pass, a
# second ground or noise is not.
FRAME_TOLERANCE = 0.4
POSITION_TOLERANCE = 0.09
_MIN_AREA, _MAX_AREA = 0.004, 0.5
_FIT_SIDE = 72
_COARSE_STEPS, _FINE_STEPS = (0.08,), (0.05, 0.025, 0.0125)
_FINALISTS = 3


@dataclass(frozen=True)
class Strictness:
    """What is looked for and how far it may be off; the defaults are those for pictures.

    `outline` is the mean distance between outline and ideal outline, in radii.
    """

    shapes: tuple[str, ...] = SHAPES
    outline: float = OUTLINE_TOLERANCE
    stray: float = STRAY_TOLERANCE


PICTURE = Strictness()


@dataclass(frozen=True)
class Reading:
    """What a picture shows; None where nothing could be read, with the reasons in `faults`.

    `center` is (x, y) in shares of the sides, `radius` a share of the shorter side.
    """

    background: str | None = None
    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    position: str | None = None
    outline_error: float = math.inf
    faults: tuple[str, ...] = ()
    center: tuple[float, float] | None = None
    radius: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a picture shows what was asked, which attributes are right, and why not."""

    passed: bool
    right: dict[str, bool]
    reasons: tuple[str, ...]
    reading: Reading


_NEIGHBOURS = torch.cartesian_prod(*(torch.tensor([-1.0, 0.0, 1.0]),) * 3)


@functools.cache
def _unit_moments(shape: str) -> tuple[float, float, float]:
    """Area, centroid height and outline length of a shape of radius 1."""
    scale = 200.0
    center = torch.tensor([[240.0, 240.0]])
    mask = coverage(shape, center, torch.tensor([scale]), 480, 480)[0]
    rows = torch.arange(480) + 0.5 - 240.0
    area = mask.sum().item()
    low = (mask.sum(1) * rows).sum().item() / area
    across = (mask[:, 1:] - mask[:, :-1])[1:]
    down = (mask[1:] - mask[:-1])[:, 1:]
    outline = torch.hypot(across, down).sum().item()
    return area / scale**2, low / scale, outline / scale


def _nearest_colour(colour: Tensor) -> str | None:
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32)
    distance, index = (palette - colour).norm(dim=1).min(0)
    return COLOUR_NAMES[int(index)] if distance.item() <= COLOUR_TOLERANCE else None


def _frame(pixels: Tensor) -> Tensor:
    """The outermost pixels [N, 3] of [3, H, W]."""
    thick = max(1, round(0.012 * min(pixels.shape[1:])))
    inner = torch.ones(pixels.shape[1:], dtype=torch.bool)
    inner[thick:-thick, thick:-thick] = False
    return pixels[:, inner].T


def _overlap(mask: Tensor, shape: str, centers: Tensor, radii: Tensor) -> tuple[Tensor, Tensor]:
    """Soft intersection over union, and area of disagreement, of N placements of a shape."""
    placed = coverage(shape, centers, radii, *mask.shape)
    shared = torch.minimum(placed, mask).sum((1, 2))
    union = torch.maximum(placed, mask).sum((1, 2))
    return shared / union, union - shared


@dataclass
class _Fit:
    """A shape placed on a soft mask: overlap with it, outline error in radii, (x, y, radius)."""

    shape: str
    place: Tensor
    overlap: float = 0.0
    error: float = math.inf

    @classmethod
    def of_moments(cls, mask: Tensor, shape: str) -> _Fit:
        """The placement that has the mask's area and centroid: exact for a perfect drawing."""
        rows, columns = torch.arange(mask.shape[0]) + 0.5, torch.arange(mask.shape[1]) + 0.5
        area = mask.sum()
        unit_area, unit_low, _ = _unit_moments(shape)
        radius = (area / unit_area).sqrt()
        x = (mask.sum(0) * columns).sum() / area
        y = (mask.sum(1) * rows).sum() / area - unit_low * radius
        return cls(shape, torch.stack([x, y, radius]))

    def improve(self, mask: Tensor, steps: tuple[float, ...]) -> _Fit:
        """Search the neighbours in place and size, in ever smaller steps (shares of the radius)."""
        for step in steps:
            tried = self.place + _NEIGHBOURS * (step * self.place[2])
            overlap, apart = _overlap(mask, self.shape, tried[:, :2], tried[:, 2])
            choice = int(overlap.argmax())
            self.place, self.overlap = tried[choice], overlap[choice].item()
            outline = _unit_moments(self.shape)[2] * tried[choice, 2].item() ** 2
            self.error = apart[choice].item() / outline
        return self


def _best_fit(mask: Tensor, shapes: tuple[str, ...]) -> _Fit:
    """The one of `shapes` that covers a soft mask best."""
    fits = [_Fit.of_moments(mask, shape).improve(mask, _COARSE_STEPS) for shape in shapes]
    fits.sort(key=lambda fit: fit.overlap, reverse=True)
    finalists = [fit.improve(mask, _FINE_STEPS) for fit in fits[:_FINALISTS]]
    return max(finalists, key=lambda fit: fit.overlap)


def _soft_mask(pixels: Tensor, background: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    """Share of foreground [H, W] in each pixel, faint traces left out, and the stray pixels."""
    axis = foreground - background
    offset = pixels - background[:, None, None]
    share = torch.einsum("chw,c->hw", offset, axis / axis.square().sum()).clamp(0.0, 1.0)
    mixture = background[:, None, None] + share * axis[:, None, None]
    stray = (pixels - mixture).norm(dim=0) > STRAY_DISTANCE
    return ((share - 0.1) / 0.8).clamp(0.0, 1.0), stray


def read(picture: Tensor, strictness: Strictness = PICTURE) -> Reading:
    """Read a picture [3, H, W] in [-1, 1]; never raises for any finite content."""
    pixels = (picture.detach().float().cpu().clamp(-1.0, 1.0) + 1.0) * 127.5
    height, width = pixels.shape[1:]
    frame = _frame(pixels)
    background = frame.median(0).values
    ground_name = _nearest_colour(background)
    if ground_name is None:
        return Reading(faults=("the frame has no colour of the palette",))
    if ((frame - background).norm(dim=1) > COLOUR_TOLERANCE).float().mean() > FRAME_TOLERANCE:
        return Reading(background=ground_name, faults=("the frame is not of one colour",))
    away = (pixels - background[:, None, None]).norm(dim=0) > COLOUR_TOLERANCE
    area = away.float().mean().item()
    if not _MIN_AREA <= area <= _MAX_AREA:
        fault = f"the foreground covers {area:.1%} of the picture"
        return Reading(background=ground_name, faults=(fault,))
    core = -F.max_pool2d(-away[None].float(), 5, stride=1, padding=2)[0] > 0.5
    foreground = pixels[:, core if core.any() else away].median(1).values
    colour_name = _nearest_colour(foreground)
    if colour_name is None or colour_name == ground_name:
        return Reading(background=ground_name, faults=("the shape has no colour of the palette",))
    mask, stray = _soft_mask(pixels, background, foreground)
    known = Reading(background=ground_name, colour=colour_name)
    if stray.sum() > strictness.stray * mask.sum():
        return Reading(ground_name, colour_name, faults=("stray colours",))
    rows, columns = mask.amax(1).nonzero(), mask.amax(0).nonzero()
    if len(rows) == 0:
        return known
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    # A margin so that no candidate is cut off, then few enough pixels for hundreds of candidates.
    pad = max(bottom - top, right - left) // 8 + 2
    part = F.pad(mask[top:bottom, left:right], (pad, pad, pad, pad))
    scale = max(1.0, max(part.shape) / _FIT_SIDE)
    if scale > 1.0:
        size = (round(part.shape[0] / scale), round(part.shape[1] / scale))
        part = F.interpolate(part[None, None], size, mode="area")[0, 0]
    fit = _best_fit(part, strictness.shapes)
    x, y, radius = fit.place.tolist()
    center = ((x * scale + left - pad) / width, (y * scale + top - pad) / height)
    share = radius * scale / min(width, height)
    size_name = min(SIZES, key=lambda name: abs(math.log(SIZES[name] / share)))
    place = min(POSITIONS, key=lambda name: math.dist(POSITIONS[name], center))
    near = math.dist(POSITIONS[place], center) <= POSITION_TOLERANCE
    faults = []
    if fit.error > strictness.outline:
        faults.append(f"the outline is {fit.error:.3f} radii off the nearest shape, {fit.shape}")
    return Reading(
        ground_name,
        colour_name,
        None if faults else fit.shape,
        size_name,
        place if near else None,
        fit.error,
        tuple(faults),
        center,
        share,
    )


def judge(picture: Tensor, asked: Asked) -> Verdict:
    """Does a picture [3, H, W] in [-1, 1] show what was asked, in everything the words fix?"""
    reading = read(picture)
    right: dict[str, bool] = {}
    reasons = list(reading.faults)
    for attribute in ("background", "colour", "shape", "size", "position"):
        wanted = getattr(asked, attribute)
        if wanted is None:
            continue
        seen = getattr(reading, attribute)
        right[attribute] = seen == wanted
        if seen != wanted:
            reasons.append(f"{attribute} is {seen or 'not readable'}, asked was {wanted}")
    return Verdict(all(right.values()), right, tuple(reasons), reading)
