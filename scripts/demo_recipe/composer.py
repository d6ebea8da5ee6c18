"""Scenes and references composed on DEVICE, a batch at a time: as `world` and `scenes` draw them, but of sprites and
backgrounds that lie there, so that no GPU waits for what CPUs draw.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from dreamcache.dreamcache_core.reference.image import MARGIN
from dreamcache.dreamcache_core.training import augmentation
from dreamcache.nodes.host.demo_network import DemoNetworks

from . import artwork
from .artwork import trained_subjects
from .loop import DEVICE, on_device
from .scenes import AUGMENTED, encode, in_latent_pixels, reference
from .world import BACKGROUNDS, SCALES, SHIFT, SIZE, TURN, caption, is_held_out

OF_EACH_BACKGROUND = 512
"""Pictures of each, which are drawn once; mirrored or not, they are twice as many."""
_TOGETHER = 256
"""Pictures that are encoded at once, when there is time."""
_CLEAN = (1 - 2 * MARGIN) * SIZE / artwork.SIZE
"""How much larger Encode Reference makes a sprite."""


@dataclass(frozen=True, eq=False)
class Composed:
    """As Scenes has them: `latents`, `references`, `masks`. `captions`: their numbers in `all_captions`, (scenes,).

    `subjects`: how much of each latent pixel of a scene is its subject, (scenes, 16, 16), 0…1. `places`: from where a
    scene shows something to where its reference does, (scenes, 2, 3), both -1…1 to the right and down.
    """

    latents: torch.Tensor
    references: torch.Tensor
    masks: torch.Tensor
    captions: torch.Tensor
    subjects: torch.Tensor
    places: torch.Tensor


def draw_backgrounds(count: int = OF_EACH_BACKGROUND) -> np.ndarray:
    """Pictures of all backgrounds, (backgrounds, count, 128, 128, 3) uint8. To be called before a GPU is touched."""
    with ProcessPoolExecutor() as pool:
        return np.stack(list(pool.map(_draw_backgrounds, BACKGROUNDS, [count] * len(BACKGROUNDS))))


def _draw_backgrounds(name: str, count: int) -> np.ndarray:
    torch.set_num_threads(1)
    random = np.random.default_rng([18, *name.encode()])
    pictures = (BACKGROUNDS[name](random) for _ in range(count))
    return np.stack([(picture.clip(0, 1) * 255).round().astype(np.uint8) for picture in pictures])


def all_captions() -> list[str]:
    """Of each name on each background."""
    return [caption(name, background) for name in _names() for background in BACKGROUNDS]


def _names() -> list[str]:
    return sorted({subject.name for subject in trained_subjects()})


class Composer:
    """Draws as many scenes as one likes, of subjects that aren't held out."""

    def __init__(self, networks: DemoNetworks, backgrounds: np.ndarray) -> None:
        """`backgrounds`: of `draw_backgrounds`."""
        subjects, names = trained_subjects(), _names()
        self._networks = networks
        self._backgrounds = on_device(backgrounds).movedim(-1, 2)
        sprites = np.stack([_sprite(subject) for subject in subjects])
        self._sprites = on_device(sprites).movedim(-1, 1)
        self._sizes = torch.tensor([subject.picture().size for subject in subjects], device=DEVICE)
        allowed = [[not is_held_out(subject.code, name) for name in BACKGROUNDS] for subject in subjects]
        self._allowed = torch.tensor(allowed, dtype=torch.float32, device=DEVICE)
        self._names = torch.tensor([names.index(subject.name) for subject in subjects], device=DEVICE)
        # Most references are what Encode Reference makes of a subject, as it is or mirrored.
        clean = [reference(subject, mirrored) for subject in subjects for mirrored in (False, True)]
        black = [reference(subject, mirrored, True) for subject in subjects for mirrored in (False, True)]
        self._references = torch.cat([encode(networks, _pictures(part)) for part in _parts(clean)])
        self._masks = torch.cat([in_latent_pixels(1 - _pictures(part)[:, 0]) for part in _parts(black)])

    @torch.no_grad()
    def draw(self, count: int) -> Composed:
        """That many scenes with their references."""
        subjects = torch.randint(len(self._sprites), (count,), device=DEVICE)
        backgrounds = torch.multinomial(self._allowed[subjects], 1)[:, 0]
        mirrored = torch.rand(count, device=DEVICE) < 0.5
        references, masks = (of[2 * subjects + mirrored] for of in (self._references, self._masks))
        straight = torch.zeros(count, device=DEVICE)
        in_references = _placement(mirrored, straight + _CLEAN, straight, torch.zeros(count, 2, device=DEVICE))
        augmented = slice(round(AUGMENTED * count))
        images, subjects_there, in_references[augmented] = self.augmented_references(subjects[augmented])
        references[augmented], masks[augmented] = encode(self._networks, images), in_latent_pixels(subjects_there)
        scale, turn, *shift = (
            _uniform(count, low, high) for low, high in (SCALES, (-TURN, TURN), (-SHIFT, SHIFT), (-SHIFT, SHIFT))
        )
        in_scenes = self.placement(subjects, mirrored, scale, turn, torch.stack(shift, -1))
        images, alpha = self.scenes(subjects, self.backgrounds(backgrounds), in_scenes)
        captions = self._names[subjects] * len(BACKGROUNDS) + backgrounds
        return Composed(
            encode(self._networks, images),
            references.float(),
            masks.float(),
            captions,
            in_latent_pixels(alpha),
            _after(in_scenes, in_references),
        )

    def backgrounds(self, numbers: torch.Tensor) -> torch.Tensor:
        """One of each number, (batch, 3, 128, 128), 0…1, mirrored or not."""
        of_each = torch.randint(self._backgrounds.shape[1], numbers.shape, device=DEVICE)
        pictures = self._backgrounds[numbers, of_each].float() / 255
        mirrored = torch.rand(len(numbers), 1, 1, 1, device=DEVICE) < 0.5
        return torch.where(mirrored, pictures.flip(-1), pictures)

    def placement(
        self,
        subjects: torch.Tensor,
        mirrored: torch.Tensor,
        scale: torch.Tensor,
        turn: torch.Tensor,
        shift: torch.Tensor,
    ) -> torch.Tensor:
        """Of subjects in scenes, as `world.draw_scene` places them and `scenes` takes it. `turn`: in degrees. `shift`:
        (batch, 2), right and down. Both, and `scale`, as SCALES and the others have it.
        """
        cos, sin = turn.deg2rad().cos(), turn.deg2rad().sin()
        width, height = self._sizes[subjects].unbind(-1)
        box = torch.stack([width * cos + height * sin.abs(), width * sin.abs() + height * cos], -1)
        zoom = scale * SIZE / box.amax(-1)
        room = (SIZE - zoom[:, None] * box) / 2
        return _placement(mirrored, zoom, turn, (shift * SIZE).clamp(-room, room))

    def scenes(
        self, subjects: torch.Tensor, backgrounds: torch.Tensor, placement: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Subjects on backgrounds, (batch, 3, 128, 128), 0…1, and their masks, (batch, 128, 128)."""
        drawn = self._placed(subjects, placement)
        return (drawn[:, :3] + (1 - drawn[:, 3:]) * backgrounds).clamp(0, 1), drawn[:, 3]

    def augmented_references(self, subjects: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `augment_reference` has them: pictures (batch, 3, 128, 128), 0…1, masks (batch, 128, 128), and
        placements.
        """
        count = len(subjects)
        zoom = _uniform(count, augmentation.SMALLEST_SIZE, 1) * SIZE / artwork.SIZE
        room = SIZE - zoom[:, None] * self._sizes[subjects]
        shift = (torch.rand(count, 2, device=DEVICE) - 0.5) * room
        mirrored = torch.rand(count, device=DEVICE) < augmentation.FLIP_PROBABILITY
        placement = _placement(mirrored, zoom, torch.zeros_like(zoom), shift)
        drawn = self._placed(subjects, placement)
        colours, mask = _jittered(drawn[:, :3], drawn[:, 3:]), drawn[:, 3:] * ~_erased(count)
        pictures = ((colours + 1 - drawn[:, 3:]) * (mask > 0) + (mask <= 0).float()).clamp(0, 1)
        return pictures, mask[:, 0], placement

    def _placed(self, subjects: torch.Tensor, placement: torch.Tensor) -> torch.Tensor:
        """Sprites in pictures, (batch, 4, 128, 128), their colours times their alpha."""
        grid = F.affine_grid(placement, [len(subjects), 4, SIZE, SIZE], align_corners=False)
        sprites = self._sprites[subjects].float() / 255
        return F.grid_sample(sprites, grid, mode="bicubic", align_corners=False).clamp(0, 1)


def _placement(mirrored: torch.Tensor, zoom: torch.Tensor, turn: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """From places of pictures to those of the sprites in them, (batch, 2, 3), both -1…1 to the right and down.

    `shift`: of their middles from those of the pictures, in pixels, (batch, 2).
    """
    cos, sin = turn.deg2rad().cos() / zoom, turn.deg2rad().sin() / zoom
    side = torch.where(mirrored, -1.0, 1.0)
    # Turned back, and then mirrored back.
    turned = torch.stack([torch.stack([side * cos, -side * sin], -1), torch.stack([sin, cos], -1)], 1)
    moved = -(turned @ shift[..., None]) * 2 / artwork.SIZE
    return torch.cat([turned * SIZE / artwork.SIZE, moved], -1)


def _after(scenes: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """From places of scenes to those of references, of which each is a placement of the same sprites."""
    back = torch.linalg.inv(references[..., :2])
    return torch.cat([back @ scenes[..., :2], back @ (scenes[..., 2:] - references[..., 2:])], -1)


def _sprite(subject: artwork.Subject) -> np.ndarray:
    """A subject in the middle of a square, its colours times its alpha, (96, 96, 4) uint8."""
    picture = np.asarray(subject.picture()).astype(np.float32)
    picture[..., :3] *= picture[..., 3:] / 255
    sprite = np.zeros((artwork.SIZE, artwork.SIZE, 4), np.uint8)
    top, left = ((artwork.SIZE - side) // 2 for side in picture.shape[:2])
    sprite[top : top + picture.shape[0], left : left + picture.shape[1]] = picture.round()
    return sprite


def _jittered(colours: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Brightness, contrast, saturation and hue of some, changed a little, as `augment_reference` does."""
    count = len(colours)
    some = torch.rand(count, device=DEVICE) < augmentation.JITTER_PROBABILITY
    brightness, contrast, saturation = (1 + _uniform(count, -1, 1) * augmentation.JITTER * some for _ in range(3))
    hue = _uniform(count, -1, 1) * augmentation.HUE_JITTER * some * 2 * torch.pi
    grey = torch.tensor([0.299, 0.587, 0.114], device=DEVICE).expand(3, 3)
    identity = torch.eye(3, device=DEVICE)
    # A turn about the greys, and then towards them or away.
    across = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=DEVICE) / 3**0.5
    cos, sin, saturation = (each[:, None, None] for each in (hue.cos(), hue.sin(), saturation))
    turned = cos * identity + (1 - cos) / 3 + sin * across
    changed = (grey + saturation * (identity - grey)) @ turned * brightness[:, None, None]
    colours = (changed @ colours.flatten(2)).view_as(colours)
    mean = (colours.mean(1, keepdim=True).sum((2, 3), keepdim=True) / alpha.sum((2, 3), keepdim=True)) * alpha
    return torch.lerp(mean, colours, contrast[:, None, None, None]).clamp(min=0).minimum(alpha)


def _erased(count: int) -> torch.Tensor:
    """Where a rectangle of some is left white, (batch, 1, 128, 128)."""
    area = _uniform(count, *augmentation.ERASED_AREA)
    aspect = _uniform(count, *np.log(augmentation.ERASED_ASPECT)).exp()
    some = torch.rand(count, device=DEVICE) < augmentation.ERASE_PROBABILITY
    places = (torch.arange(SIZE, device=DEVICE) + 0.5) / SIZE
    rows, columns = (
        (places > start[:, None]) & (places < (start + side)[:, None])
        for side in ((area * aspect).sqrt(), (area / aspect).sqrt())
        for start in [torch.rand(count, device=DEVICE) * (1 - side)]
    )
    return (some[:, None, None] & rows[:, :, None] & columns[:, None])[:, None]


def _uniform(count: int, low: float, high: float) -> torch.Tensor:
    return torch.rand(count, device=DEVICE) * (high - low) + low


def _pictures(pictures: list[np.ndarray]) -> torch.Tensor:
    """(batch, 3, 128, 128), 0…1, of (128, 128, 3) uint8 each."""
    return on_device(np.stack(pictures)).movedim(-1, 1).float() / 255


def _parts(pictures: list[np.ndarray]) -> list[list[np.ndarray]]:
    return [pictures[start : start + _TOGETHER] for start in range(0, len(pictures), _TOGETHER)]
