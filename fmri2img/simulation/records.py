"""What a simulated scene is made of, as records, and the names of what may stand in them.

Lengths are shares of the picture's width, x to the right, y down; angles are degrees.
"""

from dataclasses import dataclass

PICTURE_SIZE = 64

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (214, 40, 46),
    "orange": (242, 130, 34),
    "yellow": (247, 208, 56),
    "green": (52, 152, 66),
    "teal": (24, 162, 160),
    "blue": (40, 88, 206),
    "purple": (126, 58, 176),
    "pink": (240, 122, 176),
    "brown": (130, 82, 44),
    "white": (246, 246, 242),
    "black": (30, 30, 36),
}
"""Of objects."""
WALL_COLOURS: dict[str, Colour] = {
    "cream": (246, 234, 204),
    "grey": (156, 160, 166),
    "sky blue": (150, 202, 240),
    "mint": (176, 226, 190),
    "lavender": (200, 186, 232),
    "rose": (238, 190, 190),
    "navy": (28, 40, 92),
    "maroon": (98, 26, 44),
    "sand": (212, 180, 120),
    "charcoal": (62, 64, 72),
}
"""Of backgrounds that are no place, and of rooms."""
SKIES: dict[str, Colour] = {"day": (136, 194, 242), "sunset": (246, 158, 96), "night": (26, 32, 74)}
"""Colour of the sky by time of day."""
GROUND_LIGHT: dict[str, float] = {"day": 1.0, "sunset": 0.82, "night": 0.48}
"""How light the ground is by time of day."""
GROUNDS: dict[str, dict[str, Colour]] = {
    "field": {"green": (98, 168, 74), "golden": (222, 184, 84), "snowy": (232, 238, 246)},
    "hills": {"green": (86, 150, 78), "golden": (206, 170, 84), "snowy": (226, 232, 242)},
    "mountains": {"grey": (124, 126, 138), "brown": (140, 106, 82)},
    "sea": {"blue": (46, 108, 178), "turquoise": (52, 160, 168)},
    "town": {"grey": (132, 134, 144), "brick": (158, 96, 80)},
}
"""Backgrounds out of doors, and the colours that their ground, water or walls may have."""
INDOORS: tuple[str, ...] = ("plain", "fading", "striped", "chequered", "room")
BACKGROUNDS: tuple[str, ...] = (*INDOORS, *GROUNDS)
TEXTURES: tuple[str, ...] = ("plain", "striped", "spotted", "chequered")
LIGHTS: dict[str, tuple[float, float]] = {"left": (-0.8, -0.6), "right": (0.8, -0.6), "above": (0.0, -1.0)}
"""Where light comes from, as a direction in the picture."""
STRENGTHS: dict[str, float] = {"soft": 0.45, "bright": 1.0}
SIZES: dict[str, tuple[float, float]] = {
    "large": (0.24, 0.31),
    "medium": (0.155, 0.19),
    "small": (0.105, 0.13),
}
"""Radius of an object."""
COLUMNS: tuple[str, ...] = ("left", "centre", "right")
ROWS: tuple[str, ...] = ("top", "middle", "bottom")


@dataclass(frozen=True)
class SceneObject:
    """One object: `across` turns its texture by 90 degrees."""

    kind: str
    colour: str
    rgb: Colour
    texture: str
    across: bool
    size: str
    column: str
    row: str
    x: float
    y: float
    radius: float
    tilt: float
    mirrored: bool


@dataclass(frozen=True)
class Background:
    """What is behind the objects.

    Attributes:
        kind: one of `BACKGROUNDS`.
        time: one of `SKIES`; always day indoors.
        colours, rgbs: two named colours (plain: the first). Out of doors the sky's and the ground's, in a room
            those of wall and floor.
        horizon: height at which sky and ground, or wall and floor, meet.
        angle, period: of patterns.
        profile: eight numbers from 0 to 1 that outlines of hills, mountains and houses follow.
    """

    kind: str
    time: str
    colours: tuple[str, str]
    rgbs: tuple[Colour, Colour]
    horizon: float
    angle: float
    period: float
    profile: tuple[float, ...]


@dataclass(frozen=True)
class Light:
    """Where the light of a scene comes from, one of `LIGHTS`, and how strong it is, one of `STRENGTHS`."""

    side: str
    strength: str


@dataclass(frozen=True)
class Scene:
    """What a picture shows: `objects` with the main one first, `painted` their indices from back to front."""

    objects: tuple[SceneObject, ...]
    painted: tuple[int, ...]
    background: Background
    light: Light
