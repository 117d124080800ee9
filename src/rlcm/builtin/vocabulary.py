"""What the built-in model can draw: animals, background colours and patterns, and the prompts that name them."""

from __future__ import annotations

from dataclasses import dataclass

# fmt: off
ANIMALS: tuple[str, ...] = (
    "cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep", "deer", "cow",
    "goat", "lion", "tiger", "bear", "raccoon", "fox", "wolf", "lizard", "beetle", "ant", "butterfly",
    "fish", "shark", "whale", "dolphin", "squirrel", "mouse", "rat", "snake", "turtle", "frog", "chicken",
    "duck", "goose", "bee", "pig", "turkey", "fly", "llama", "camel", "bat", "gorilla", "hedgehog",
    "kangaroo",
)
"""The 45 simple animals of the RLCM and DDPO papers' prompt list."""
# fmt: on

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 40, 45),
    "orange": (245, 135, 30),
    "yellow": (250, 220, 60),
    "green": (60, 160, 70),
    "cyan": (70, 205, 220),
    "blue": (45, 80, 205),
    "purple": (120, 50, 165),
    "pink": (250, 155, 200),
    "white": (245, 245, 245),
    "black": (25, 25, 28),
}
"""Background colours, sRGB."""

PATTERNS: tuple[str, ...] = ("plain", "gradient", "striped", "checked", "speckled")


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture's content: indices into ANIMALS, COLOURS and PATTERNS."""

    animal: int
    colour: int
    pattern: int


def article(word: str) -> str:
    """Return the word with its indefinite article: "a fox", "an ant"."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def caption(scene: Scene, detail: int = 2) -> str:
    """Return the prompt of a scene; `detail` 0 names the animal, 1 also the colour, 2 also the pattern."""
    animal, colour, pattern = ANIMALS[scene.animal], list(COLOURS)[scene.colour], PATTERNS[scene.pattern]
    if detail == 0:
        return article(animal)
    background = f"{colour} background" if detail == 1 else f"{colour} {pattern} background"
    return f"{article(animal)} on {article(background)}"


def is_held_out(animal: int, colour: int) -> bool:
    """Say whether this animal-on-colour combination is kept out of all generator training (one colour for each animal)."""
    return colour == (7 * animal + 3) % len(COLOURS)
