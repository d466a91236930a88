"""The model card of the simulation's models, written from their measured quality."""

from collections.abc import Mapping
from typing import Any

CARD = """\
---
license: apache-2.0
library_name: diffusers
---
# The simulation's models

Small models of the classes that real pictures are made with, trained by `fmri2img simulation train` on the
simulation's own rendered scenes and captions, and on nothing else. They know scenes of 64 x 64 pixels and nothing of
the world. Weights are safetensors in float16; load them as float32 on a processor.

| folder | class | what it does | parameters |
|---|---|---|---|
| `clip` | `transformers.CLIPModel` | embeds pictures and captions of 32 tokens in 64 dimensions | {parameters[clip]} |
| `vae` | `diffusers.AutoencoderKL` | pictures to latents (4, 16, 16) and back | {parameters[vae]} |
| `unclip` | `diffusers.StableUnCLIPImg2ImgPipeline` | pictures of image embeddings | {parameters[unclip]} |
| `sd` | `diffusers.StableDiffusionPipeline` | pictures of captions | {parameters[sd]} |
| `controlnet` | `diffusers.ControlNetModel` | adds structure, a blurred picture, to `sd` | {parameters[controlnet]} |

Parameters are those of the part that the folder is for: the pipelines' copies of towers and autoencoder are those of
`clip` and `vae`.

## Training

{pictures} pictures with five captions each, seed {seed}; their ids and seed are apart from those of every data set.
Steps and rows a step: {schedules}.
The text tower learns together with a convolutional `teacher`, which is not kept: which caption is whose, and which
words a picture's captions hold; then (`shapes`) also, from the scenes' records, what the main object is, its colour,
and the background. The image tower of `clip` learns to see what that teacher sees. The network of `unclip` learns from
image embedding, caption, both or nothing; that of `sd` goes on from it; `controlnet` learns with `sd` frozen.
v-prediction; weights averaged over steps. `training.json` has every setting.

## Quality

On {held_out} pictures that no model has seen. Figures of samples are from {quality[pictures]} of them, by DDIM with
{quality[sampling_steps]} steps. The Fréchet distance is that of embeddings in `clip`, against
{quality[reference_pictures]} other pictures; it compares rows of this page and nothing else.

| measure | value |
|---|---|
| `vae`: PSNR of reconstructions | {quality[vae][psnr]} dB |
| `vae`: Fréchet distance of reconstructions | {quality[vae][frechet]} |
| `clip`: kind of the main object, zero-shot of {quality[clip][classes][kind]} | {quality[clip][kind]:.1%} |
| `clip`: its colour, zero-shot of {quality[clip][classes][colour]} | {quality[clip][colour]:.1%} |
| `clip`: background, zero-shot of {quality[clip][classes][background]} | {quality[clip][background]:.1%} |
| `clip`: pairs in which a picture's own caption is nearer | {quality[clip][caption_two_way]:.2%} |
| real pictures: Fréchet distance, the floor | {quality[floor][frechet]} |
| real pictures: mean cosine with their captions | {quality[floor][caption_cosine]} |

Two-way: in how many pairs a sample's embedding is nearer to the embedding that was meant than another sample's is.
Kind: how many samples show, to `clip`, a main object of the kind that was meant; of the real pictures
{quality[floor][kind]:.1%}. PixCorr: correlation of pixels with the picture that was meant.

### `unclip`, from true image embeddings

{unclip}

### `sd`, from captions

{sd}

### `controlnet`, from captions and 16 x 16 pixels

{controlnet}

## Limits

`clip` was told kinds, colours and backgrounds beside captions, so its zero-shot figures are not those of learning from
captions alone. What it does not see, no figure of this page that is measured in `clip` notices: look at the sheet of
samples. Embeddings predicted from brain activity are not true embeddings; how well those do is for an evaluation to
say.
"""


def write_card(quality: Mapping[str, Any], training: Mapping[str, Any], parameters: Mapping[str, int]) -> str:
    """The card as Markdown, from `quality.json`, `training.json` and how many parameters each folder's model has."""
    size = training["size"]
    names = list(parameters)
    taught = ["teacher", "shapes", *names]
    schedules = ", ".join(f"`{name}` {size[name]['steps']} of {size[name]['batch']}" for name in taught)
    return CARD.format(
        parameters={name: f"{number / 1e6:.2f} M" for name, number in parameters.items()},
        pictures=size["pictures"],
        held_out=size["held_out"],
        seed=training["seed"],
        schedules=schedules,
        quality=quality,
        unclip=_curve(quality["unclip"]),
        sd=_curve(quality["sd"]),
        controlnet=_curve({"2": quality["controlnet"]}),
    )


def _curve(rows: Mapping[str, Mapping[str, float]]) -> str:
    names = (
        "guidance",
        "Fréchet distance",
        "cosine with the picture",
        "with the caption",
        "two-way",
        "kind",
        "PixCorr",
    )
    head = f"| {' | '.join(names)} |\n{'|---' * len(names)}|"
    lines = [
        f"| {guidance} | {row['frechet']} | {row['image_cosine']} | {row['caption_cosine']} "
        f"| {row['two_way']:.1%} | {row['kind']:.1%} | {row['pixel_correlation']} |"
        for guidance, row in rows.items()
    ]
    return "\n".join([head, *lines])
