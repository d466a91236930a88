"""The sheet of samples: held-out pictures above what each model makes of them."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from fmri2img.simulation.modelling.clip import as_pixels
from fmri2img.simulation.modelling.control import hint
from fmri2img.simulation.modelling.quality import CPU, HINT_SIDE, embedded, reconstructed
from fmri2img.simulation.modelling.renders import Renders
from fmri2img.simulation.modelling.sampling import Models, as_bytes, from_captions, from_embeddings
from fmri2img.simulation.modelling.sizes import Size

COLUMNS = 10
ENLARGED = 2
GAP, MARGIN, LINE = 4, 150, 22
GUIDANCE = {"unclip": 3.0, "sd": 3.0, "controlnet": 2.0}
"""Of the rows of the sheet."""


def draw_sheet(models: Models, held_out: Renders, size: Size) -> Image.Image:
    """Rows of ten pictures with their names, and the captions below them."""
    pictures, captions = held_out.pictures[:COLUMNS], [texts[0] for texts in held_out.captions[:COLUMNS]]
    steps = size.sampling_steps
    embeddings = torch.from_numpy(embedded(models, pictures))
    hints = hint(as_pixels(pictures, CPU) / 2 + 0.5, HINT_SIDE)
    rows = {
        "held-out pictures": pictures,
        "vae": reconstructed(models, pictures),
        "unclip: from the\nimage embedding": from_embeddings(
            models, embeddings, guidance=GUIDANCE["unclip"], steps=steps
        ),
        "the same, other noise": from_embeddings(
            models, embeddings, guidance=GUIDANCE["unclip"], steps=steps, seed=1
        ),
        "sd: from the caption": from_captions(models, captions, guidance=GUIDANCE["sd"], steps=steps),
        f"structure, {HINT_SIDE} x {HINT_SIDE}": as_bytes(hints),
        "controlnet: from\nstructure and caption": from_captions(
            models, captions, guidance=GUIDANCE["controlnet"], steps=steps, hints=hints
        ),
    }
    return _laid_out(rows, [f"{i + 1}  {caption}" for i, caption in enumerate(captions)])


def _laid_out(rows: dict[str, np.ndarray], lines: Sequence[str]) -> Image.Image:
    side = next(iter(rows.values())).shape[1] * ENLARGED
    width = MARGIN + COLUMNS * (side + GAP)
    sheet = Image.new("RGB", (width, len(rows) * (side + GAP) + len(lines) * LINE + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, (name, pictures) in enumerate(rows.items()):
        top = row * (side + GAP)
        draw.text((GAP, top + side // 2 - 16), name, fill="black", font=font)
        for column, picture in enumerate(pictures):
            enlarged = Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (MARGIN + column * (side + GAP), top))
    for number, line in enumerate(lines):
        draw.text((GAP, len(rows) * (side + GAP) + number * LINE), line, fill="black", font=font)
    return sheet
