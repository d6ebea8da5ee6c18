"""Scenes of the demo world: a subject on a named background, with its mask and its caption."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .artwork import Subject

SIZE = 128
SCALES = (0.78, 0.94)
"""Of a subject's longer side, as a fraction of the picture's."""
TURN = 8.0
SHIFT = 0.06
"""How far from the middle it may be, as a fraction of the picture's side."""
_Random = np.random.Generator


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture of the demo world.

    `image`: (128, 128, 3) uint8. `mask`: (128, 128) uint8, 255 where the subject is. `mirrored`: whether it is.
    """

    image: np.ndarray
    mask: np.ndarray
    subject: Subject
    background: str
    mirrored: bool

    @property
    def caption(self) -> str:
        return caption(self.subject.name, self.background)


def draw_scene(subject: Subject, background: str, random: _Random) -> Scene:
    """A subject about as large as the picture and about in its middle, turned a little and mirrored or not, on a
    background that is drawn anew.
    """
    picture = subject.picture()
    mirrored = bool(random.random() < 0.5)
    if mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = picture.rotate(random.uniform(-TURN, TURN), Image.Resampling.BICUBIC, expand=True)
    scale = random.uniform(*SCALES) * SIZE / max(picture.size)
    picture = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS)
    left, top = (_place(side, random) for side in picture.size)

    canvas = Image.fromarray((BACKGROUNDS[background](random).clip(0, 1) * 255).round().astype(np.uint8))
    canvas.paste(picture, (left, top), picture)
    mask = Image.new("L", (SIZE, SIZE))
    mask.paste(picture.getchannel("A"), (left, top))
    return Scene(np.asarray(canvas), np.asarray(mask), subject, background, mirrored)


def _place(side: int, random: _Random) -> int:
    """Where something of this length begins, so that all of it is in the picture."""
    room = SIZE - side
    return round(min(max(room / 2 + random.uniform(-SHIFT, SHIFT) * SIZE, 0), room))


def random_scene(drawn: list[Subject], random: _Random) -> Scene:
    """Any of these subjects on any background, but for the pairs that are held out."""
    names = list(BACKGROUNDS)
    while True:
        subject, background = drawn[random.integers(len(drawn))], names[random.integers(len(names))]
        if not is_held_out(subject.code, background):
            return draw_scene(subject, background, random)


def caption(name: str, background: str) -> str:
    article = "an" if name[0] in "aeiou" else "a"
    return f"{article} {name} {background}"


def is_held_out(code: str, background: str) -> bool:
    """Whether no scene shows this class on this background to a model in training: one pair of sixteen."""
    return hashlib.sha256(f"{code} {background}".encode()).digest()[0] % 16 == 0


# --- Backgrounds, each (128, 128, 3) float, 0…1 ----------------------------------------------------------------------

_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE


def _color(random: _Random, color: tuple[int, int, int], spread: float = 0.05) -> np.ndarray:
    """About this colour, (3,)."""
    return np.array(color, np.float32) / 255 + random.normal(0, spread, 3).astype(np.float32)


def _noise(random: _Random, cells: int | tuple[int, int]) -> np.ndarray:
    """Smooth noise of so many cells a side (down, across), (128, 128, 1), about -1…1."""
    down, across = (cells, cells) if isinstance(cells, int) else cells
    grid = Image.fromarray(random.normal(0, 0.5, (down, across)).astype(np.float32))
    return np.asarray(grid.resize((SIZE, SIZE), Image.Resampling.BICUBIC))[..., None]


def _between(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """From one colour or picture to the other, as the weight, (128, 128, 1) or (128, 128), goes from 0 to 1."""
    weight = weight.reshape(SIZE, SIZE, 1).clip(0, 1)
    return first * (1 - weight) + second * weight


def _above(height: np.ndarray | float, softness: float = 0.01) -> np.ndarray:
    """1 below a line at this height (0 is the top), 0 above it."""
    return (_Y - height) / softness


def _ground(
    random: _Random, sky: np.ndarray, horizon: tuple[int, int, int], ground: np.ndarray, wave: float = 0.0
) -> np.ndarray:
    """Sky that pales towards a horizon, and ground below it."""
    line = random.uniform(0.35, 0.6) + wave * _noise(random, (2, 4))[..., 0]
    return _between(_between(sky, _color(random, horizon, 0.03), _Y / line), ground, _above(line))


def _snow(random: _Random) -> np.ndarray:
    ground = _color(random, (240, 245, 252), 0.015) + 0.03 * _noise(random, (12, 6))
    return _ground(random, _color(random, (150, 180, 215)), (215, 228, 240), ground, 0.03)


def _beach(random: _Random) -> np.ndarray:
    picture = _ground(random, _color(random, (110, 190, 240)), (190, 225, 245), _color(random, (30, 130, 180)))
    sand = _color(random, (237, 210, 150)) + 0.04 * _noise(random, 24)
    return _between(picture, sand, _above(random.uniform(0.66, 0.8) + 0.04 * _noise(random, (2, 5))[..., 0]))


def _meadow(random: _Random) -> np.ndarray:
    grass = _color(random, (90, 165, 60)) + 0.08 * _noise(random, (20, 32)) * np.array([0.8, 1, 0.5], np.float32)
    return _ground(random, _color(random, (100, 175, 240)), (200, 225, 245), grass, 0.04)


def _night(random: _Random) -> np.ndarray:
    picture = _between(_color(random, (8, 10, 40), 0.02), _color(random, (40, 35, 90), 0.03), _Y)
    stars = random.integers(0, SIZE, (40, 2))
    picture[stars[:, 0], stars[:, 1]] = random.uniform(0.6, 1, (40, 1))
    return picture


def _sunset(random: _Random) -> np.ndarray:
    picture = _between(_color(random, (90, 50, 120)), _color(random, (255, 140, 60)), _Y / 0.75)
    sun = (_X - random.uniform(0.15, 0.85)) ** 2 + (_Y - random.uniform(0.55, 0.75)) ** 2
    picture = _between(picture, _color(random, (255, 225, 130), 0.02), (random.uniform(0.1, 0.16) ** 2 - sun) * 200)
    return _between(picture, _color(random, (60, 30, 50), 0.03), _above(random.uniform(0.78, 0.86), 0.02))


def _bricks(random: _Random) -> np.ndarray:
    high = random.uniform(0.075, 0.1)
    row = np.floor(_Y / high)
    across = _X / (2.2 * high) + 0.5 * (row % 2)
    shade = random.normal(0, 0.05, (32, 32)).astype(np.float32)[row.astype(int), np.floor(across).astype(int)]
    brick = _color(random, (165, 75, 55)) + shade[..., None]
    mortar = (_Y / high % 1 < 0.15) | (across % 1 < 0.07)
    return _between(brick, _color(random, (205, 190, 175), 0.03), mortar.astype(np.float32))


def _wood(random: _Random) -> np.ndarray:
    board = np.floor(_Y * random.uniform(4, 6) + random.random()).astype(int)
    shade = random.normal(0, 0.05, 16).astype(np.float32)[board][..., None]
    wood = _color(random, (160, 105, 60)) + shade + 0.08 * _noise(random, (48, 3))
    gaps = np.pad(np.diff(board, axis=0) != 0, ((1, 0), (0, 0)))
    return _between(wood, _color(random, (80, 48, 25), 0.02), gaps.astype(np.float32))


def _checks(random: _Random) -> np.ndarray:
    across = random.uniform(5, 8)
    check = (np.floor(_X * across + random.random()) + np.floor(_Y * across + random.random())) % 2
    return _between(_color(random, (245, 245, 240), 0.02), _color(random, (200, 40, 45), 0.05), check)


def _stripes(random: _Random) -> np.ndarray:
    stripe = np.floor(_X * random.uniform(6, 10) + random.random()) % 2
    return _between(_color(random, (240, 235, 225), 0.02), _color(random, (60, 100, 175)), stripe)


def _dots(random: _Random) -> np.ndarray:
    across = random.uniform(4, 6)
    x, y = (place * across + random.random() for place in (_X, _Y))
    distance = np.hypot((x + 0.5 * (np.floor(y) % 2)) % 1 - 0.5, y % 1 - 0.5)
    return _between(_color(random, (250, 205, 60)), _color(random, (250, 250, 245), 0.02), (0.3 - distance) * 12)


def _desert(random: _Random) -> np.ndarray:
    picture = _ground(random, _color(random, (240, 190, 130)), (250, 220, 170), _color(random, (215, 140, 70)), 0.06)
    dune = random.uniform(0.7, 0.8) + 0.08 * _noise(random, (2, 4))[..., 0]
    return _between(picture, _color(random, (190, 110, 50)), _above(dune))


def _forest(random: _Random) -> np.ndarray:
    picture = _between(_color(random, (60, 100, 60)), _color(random, (110, 150, 90)), 0.5 + _noise(random, (6, 9)))
    for place in random.uniform(0, 1, int(random.integers(5, 9))):
        trunk = random.uniform(0.015, 0.04) - np.abs(_X - place)
        picture = _between(picture, _color(random, (70, 48, 35), 0.03), trunk * 100)
    return _between(picture, _color(random, (75, 85, 40)), _above(random.uniform(0.75, 0.85), 0.02))


def _water(random: _Random) -> np.ndarray:
    ripples = np.sin(_Y * random.uniform(50, 80) + 4 * _noise(random, (6, 3))[..., 0])[..., None]
    return _between(_color(random, (60, 150, 190)), _color(random, (15, 70, 130)), _Y) + 0.06 * ripples


def _stones(random: _Random) -> np.ndarray:
    seeds = random.uniform(-0.1, 1.1, (60, 2)).astype(np.float32)
    distance = np.hypot(_X[..., None] - seeds[:, 0], _Y[..., None] - seeds[:, 1])
    nearest = np.sort(np.partition(distance, 1, axis=-1)[..., :2], axis=-1)
    shade = random.normal(0, 0.06, 60).astype(np.float32)[distance.argmin(-1)][..., None]
    stones = _color(random, (150, 150, 150), 0.03) + shade
    return _between(
        _color(random, (85, 85, 88), 0.02) * np.ones((SIZE, SIZE, 1), np.float32),
        stones,
        (nearest[..., 1] - nearest[..., 0]) * 60,
    )


def _pink(random: _Random) -> np.ndarray:
    wall = _color(random, (245, 165, 190), 0.03)
    light = 0.08 * np.hypot(_X - random.random(), _Y - random.uniform(0, 0.5))[..., None]
    return _between(wall - light, wall - 0.12, _above(random.uniform(0.7, 0.85), 0.02))


def _mountains(random: _Random) -> np.ndarray:
    picture = _between(_color(random, (130, 180, 230)), _color(random, (215, 230, 240), 0.03), _Y / 0.6)
    for height, color in ((0.35, (150, 160, 185)), (0.5, (95, 110, 140))):
        peaks = np.interp(_X[0], np.linspace(0, 1, 8), random.uniform(-0.16, 0.1, 8)).astype(np.float32)
        line = height + peaks[None]
        rock = _between(_color(random, (245, 248, 252), 0.01), _color(random, color, 0.03), (_Y - line - 0.06) * 60)
        picture = _between(picture, rock, _above(line))
    return _between(picture, _color(random, (80, 120, 75)), _above(random.uniform(0.72, 0.82), 0.02))


def _white(random: _Random) -> np.ndarray:
    return np.ones((SIZE, SIZE, 3), np.float32)


BACKGROUNDS: dict[str, Callable[[_Random], np.ndarray]] = {
    "on a snowy field": _snow,
    "on a sandy beach": _beach,
    "on a green meadow": _meadow,
    "in the night sky": _night,
    "at sunset": _sunset,
    "in front of a brick wall": _bricks,
    "on a wooden table": _wood,
    "on a red checkered tablecloth": _checks,
    "in front of a blue striped curtain": _stripes,
    "on yellow polka dots": _dots,
    "in the desert": _desert,
    "in a forest": _forest,
    "in the water": _water,
    "on grey cobblestones": _stones,
    "in a pink room": _pink,
    "in the mountains": _mountains,
    # As Encode Reference puts subjects that are cut out.
    "on a white background": _white,
}
