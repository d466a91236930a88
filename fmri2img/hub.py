"""The one table of published models: under which hub name, which files of it, of what licence, for what.

Everything that loads a published model takes its hub name or a local folder of the same files. This table is what
`docs/features.md` and `docs/generators.md` show; a model that is not in it loads just as well if its files are there.
"""

from dataclasses import dataclass

CONFIG = "config.json"
WEIGHTS = "model*.safetensors"
"""One file, or the numbered ones of a sharded model; not `open_clip_model.safetensors` beside them."""
INDEX = "model.safetensors.index.json"
PROCESSOR = "preprocessor_config.json"
TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "tokenizer.json")

CLIP_IMAGE = (CONFIG, PROCESSOR, WEIGHTS)
CLIP_TEXT = (CONFIG, "vocab.json", "merges.txt", WEIGHTS)
VAE = (CONFIG, "diffusion_pytorch_model*.safetensors")


@dataclass(frozen=True)
class HubModel:
    """A published model.

    Attributes:
        name: what a recipe writes: the hub name, or `simulation/NAME`.
        kinds: what uses it, and what that gives of a picture.
        files: patterns of the files that are needed.
        licence: as its card says.
        note: what is to be known before it is used.
    """

    name: str
    kinds: str
    files: tuple[str, ...]
    licence: str
    note: str = ""


FEATURES = (
    HubModel(
        "openai/clip-vit-large-patch14",
        "clip-image 257 × 768 tokens, 768 embedding; clip-text 77 × 768, 768; clip-layers 257 × 1024",
        (*CLIP_IMAGE, "vocab.json", "merges.txt"),
        "MIT",
        "MindEye1, Brain-Diffuser, Takagi and Nishimoto; the text encoder of Stable Diffusion 1.x",
    ),
    HubModel(
        "openai/clip-vit-base-patch32",
        "clip-layers 50 × 768; clip-image 50 × 512, 512",
        CLIP_IMAGE,
        "MIT",
        "NeuralDiffuser's guidance. Where the hub has it as pytorch_model.bin alone, convert it once (below)",
    ),
    HubModel(
        "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
        "openclip 256 × 1664 tokens; clip-image 1280 embedding",
        CLIP_IMAGE,
        "MIT",
        "MindEye2's target (OpenCLIP ViT-bigG-14, laion2b_s39b_b160k)",
    ),
    HubModel(
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        "clip-image 257 × 1024 tokens, 1024 embedding; clip-text 77 × 1024",
        (*CLIP_IMAGE, "vocab.json", "merges.txt"),
        "MIT",
        "the encoders of Stable Diffusion 2.x, Stable unCLIP and IP-Adapter",
    ),
    HubModel(
        "stabilityai/sd-vae-ft-mse",
        "vae 4 × size/8 × size/8",
        VAE,
        "MIT",
        "the encoder of Stable Diffusion 1.x and 2.x, whose latents are the same; another decoder",
    ),
    HubModel(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "vae 4 × size/8 × size/8; clip-text 77 × 768",
        ("vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
        "CreativeML Open RAIL-M",
        "its folders vae/, text_encoder/ and tokenizer/ are found by themselves",
    ),
    HubModel(
        "facebook/convnext-xlarge-224-22k",
        "convnext 2048 × 7 × 7 (stage 4), 1024 × 14 × 14 (stage 3)",
        CLIP_IMAGE,
        "Apache-2.0",
        "near MindEye2's low-level teacher, which is VICRegL's ConvNeXt-XL with a projector; not the same features",
    ),
    HubModel(
        "simulation/clip",
        "clip-image, clip-text, clip-layers of 64 px pictures",
        (*CLIP_IMAGE, "tokenizer.json"),
        "Apache-2.0",
        "comes with fmri2img: trained on the simulation's scenes",
    ),
    HubModel(
        "simulation/vae", "vae 4 × 16 × 16", VAE, "Apache-2.0", "comes with fmri2img, as simulation/clip"
    ),
)
"""Models that make feature spaces."""
