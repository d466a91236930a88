"""A diffusion prior: from what a branch predicted of a space to a sample of what the space could hold.

A regression answers with the mean of all pictures that a response could mean, which lies where no picture is. A prior
draws one of them. Legend for shapes: B rows, F features of a space, T its tokens of D channels (F = T D), W the width
of the transformer, N all tokens of a sequence, H attention heads of K channels.

The network is that of MindEye (Scotti et al. 2023, NeurIPS, arXiv 2305.18274) and MindEye2 (Scotti et al. 2024, ICML,
arXiv 2403.11207, section 2.2), after DALL-E 2's prior (Ramesh et al. 2022, arXiv 2204.06125, section 2.2): a sequence
of the branch's tokens, one of time, and the noisy tokens, through a transformer; where the noisy tokens stood, the
embedding is read. Without `width`, parameters have the shapes and the meaning of the published ones. Different from
them: features are standardised as the branch has them (published tokens go in as they are, a branch with mean 0 and
scale 1); dropped conditions are drawn outside, by name. Where weights are published ones, `last_norm` and `sampler`
are what they were trained and judged with.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from torch import Tensor, nn
from torch.nn import functional

from fmri2img.errors import InputError
from fmri2img.models.diffusion import (
    Prediction,
    cosine_signal,
    draw_as_dalle2,
    draw_embedding,
    embedding_of,
)

BUCKETS, FARTHEST = 32, 128  # of relative positions: how many are told apart, beyond which all are one
SHARPNESS = 16  # cosines of queries and keys are multiplied by it
# What of a prior may be another one when it is used or finetuned; the rest is what it was trained as.
FREE = {"guidance", "sampling_steps", "sampler", "eta", "use", "condition_dropout"}


class PriorConfig(BaseModel):
    """A diffusion prior of one feature space, as a recipe has it. Defaults are those of MindEye2 but for the heads."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    depth: int = Field(default=6, ge=1, description="layers of the transformer")
    heads: int = Field(default=8, ge=1, description="attention heads")
    head_width: int = Field(default=64, ge=2, multiple_of=2, description="channels of a head")
    width: int | None = Field(
        default=None,
        ge=2,
        description="width of the transformer; the channels of a token where nothing is said",
    )
    causal: bool = Field(default=False, description="whether a token sees only those before it")
    queries: Literal["positions", "all-positions", "tokens"] = Field(
        default="positions",
        description="what is learned for every token of the space: a position added to the noisy token, to all tokens "
        "of the sequence, or a further token that the embedding is read from, as in DALL-E 2",
    )
    predicts: Prediction = Field(default="x0", description="embedding, noise (eps) or velocity (v)")
    timesteps: int = Field(default=100, ge=2, description="levels of noise in training")
    condition_dropout: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="share of rows without the condition, and without the noisy tokens",
    )
    guidance: float = Field(default=1.0, ge=0, description="of sampling; 1 is the plain conditional prior")
    sampling_steps: int = Field(default=20, ge=1, description="of sampling, at most timesteps")
    sampler: Literal["even", "dalle2"] = Field(
        default="even",
        description="even: sampling_steps from the last timestep to the first; dalle2: those of DALLE2-pytorch, which "
        "MindEye2 draws with, where sampling_steps is less than timesteps",
    )
    eta: float = Field(
        default=1.0, ge=0, le=1, description="noise added in sampling; 0 DDIM, 1 as much as DDPM"
    )
    last_norm: Literal["layer", "stable"] = Field(
        default="layer",
        description="stable: as published, after a division by the largest channel (Ding et al. 2021, CogView)",
    )
    use: Literal["sample", "mean"] = Field(
        default="sample", description="what pictures are made from: a sample, or what the branch predicts"
    )

    @model_validator(mode="after")
    def _fits(self) -> "PriorConfig":
        if self.sampling_steps > self.timesteps:
            raise ValueError(
                f"sampling_steps {self.sampling_steps} are more than the {self.timesteps} timesteps: lower them"
            )
        return self

    @model_serializer(mode="wrap")
    def _newer_only_where_set(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        newer = {
            "sampler": "even",
            "last_norm": "layer",
        }  # readers from before these read what is at its default
        return {key: value for key, value in handler(self).items() if newer.get(key) != value}

    def trained_as(self) -> dict[str, object]:
        """What another prior must have in common to take over this one's weights."""
        return self.model_dump(mode="json", exclude=FREE)


class Noised(NamedTuple):
    """What a prior is asked about a batch: features (B, F) with noise, timesteps (B,) int64, and `dropped` (B, 2) bool.

    The columns of `dropped` say which rows go without the condition and without the noisy tokens.
    """

    noisy: Tensor
    timestep: Tensor
    dropped: Tensor


def tokens_of(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Tokens and channels of a space: (F,) is one token, (T, D) is T. Raises InputError for another shape."""
    if len(shape) not in (1, 2):
        raise InputError(
            f"space {name} has shape {shape}: a prior takes spaces of shape (features,) or (tokens, channels); take "
            "its prior out, or predict a space of such a shape"
        )
    return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])


class DiffusionPrior(nn.Module):
    """Noisy standardised features and the branch's prediction of them to the embedding, by timestep."""

    def __init__(self, name: str, shape: tuple[int, ...], config: PriorConfig) -> None:
        super().__init__()
        self.config, (self.tokens, channels) = config, tokens_of(name, shape)
        width = self.width = config.width or channels
        entering = config.width is not None
        self.enter_condition = nn.Linear(channels, width) if entering else nn.Identity()
        self.enter_noisy = nn.Linear(channels, width) if entering else nn.Identity()
        wide = 2 * width
        self.time = nn.Sequential(
            nn.Linear(width, wide), nn.SiLU(), nn.Linear(wide, wide), nn.SiLU(), nn.Linear(wide, width)
        )
        learned = 2 * self.tokens + 1 if config.queries == "all-positions" else self.tokens
        self.queries = nn.Parameter(torch.randn(learned, width) * width**-0.5)
        self.no_condition = nn.Parameter(torch.randn(self.tokens, width))
        self.no_noisy = nn.Parameter(torch.randn(self.tokens, width))
        self.distances = nn.Embedding(BUCKETS, config.heads)
        self.layers = nn.ModuleList(PriorLayer(width, config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, bias=False)
        self.leave = nn.Linear(width, channels, bias=False)

    def forward(
        self, noisy_BF: Tensor, timestep_B: Tensor, condition_BF: Tensor, dropped_B2: Tensor
    ) -> Tensor:
        """(B, F): what `predicts` names, for each row."""
        condition = self.enter_condition(condition_BF.unflatten(1, (self.tokens, -1)))
        noisy = self.enter_noisy(noisy_BF.unflatten(1, (self.tokens, -1)))
        dropped = dropped_B2[:, :, None, None]
        condition = torch.where(dropped[:, 0], self.no_condition.to(condition.dtype), condition)
        noisy = torch.where(dropped[:, 1], self.no_noisy.to(noisy.dtype), noisy)
        time = self.time(self._angles(timestep_B).to(noisy_BF.dtype))[:, None]
        if self.config.queries == "positions":
            noisy = noisy + self.queries
        parts = [condition, time, noisy]
        if self.config.queries == "tokens":
            parts.append(self.queries.expand(len(noisy), -1, -1))
        x = torch.cat([part.to(noisy.dtype) for part in parts], 1)
        if self.config.queries == "all-positions":
            x = x + self.queries
        bias_HNN = self._bias(x)
        for layer in self.layers:
            x = layer(x, bias_HNN)
        if self.config.last_norm == "stable":
            x = x / x.amax(-1, keepdim=True).detach()
        predicted: Tensor = self.leave(self.norm(x))[:, -self.tokens :].flatten(1)
        return predicted

    @torch.no_grad()
    def sample(self, condition_BF: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """(B, F) float32 standardised features, one sample a row, from the row's own generator.

        With `guidance` g the prediction is that without condition plus g times what the condition adds (Ho and
        Salimans 2022, arXiv 2207.12598, written as published priors have it). The network needs evaluation mode.
        """
        config, kind = self.config, self.leave.weight.dtype
        signal = cosine_signal(config.timesteps)
        with_all = torch.zeros(len(condition_BF), 2, dtype=torch.bool, device=condition_BF.device)

        def denoise(noisy: Tensor, timestep: Tensor) -> Tensor:
            def ask(dropped: Tensor) -> Tensor:
                told: Tensor = self(noisy.to(kind), timestep, condition_BF.to(kind), dropped)
                return told.float()

            said = ask(with_all)
            if config.guidance != 1:
                without = ask(~with_all)
                said = without + config.guidance * (said - without)
            return embedding_of(said, noisy, timestep, signal, predicts=config.predicts)

        as_dalle2 = config.sampler == "dalle2" and config.sampling_steps < config.timesteps
        return (draw_as_dalle2 if as_dalle2 else draw_embedding)(
            denoise,
            condition_BF.shape[1],
            generators,
            timesteps=config.timesteps,
            steps=config.sampling_steps,
            eta=config.eta,
            device=condition_BF.device,
        )

    def _angles(self, timestep_B: Tensor) -> Tensor:
        """(B, W) float32 sines and cosines of the timestep (Vaswani et al. 2017, section 3.5)."""
        half = self.width // 2
        rates = torch.exp(-math.log(1e4) / max(1, half - 1) * torch.arange(half, device=timestep_B.device))
        angle = timestep_B.float()[:, None] * rates
        return functional.pad(torch.cat([angle.sin(), angle.cos()], 1), (0, self.width % 2))

    def _bias(self, x_BNW: Tensor) -> Tensor:
        """(H, N, 1 + N): what distance adds to attention (Raffel et al. 2020, JMLR, section 2.1); key 0 is no token."""
        count, device = x_BNW.shape[1], x_BNW.device
        # As published, tokens after the query all count as at distance 0, and the key of no token shifts all by one.
        back = torch.arange(count, device=device)[:, None] - torch.arange(count + 1, device=device)
        back = back.clamp(min=0)
        exact = BUCKETS // 2
        far = torch.log(back.clamp(min=1).float() / exact) / math.log(FARTHEST / exact) * (BUCKETS - exact)
        bucket = torch.where(back < exact, back, (exact + far.long()).clamp(max=BUCKETS - 1))
        bias: Tensor = self.distances(bucket).permute(2, 0, 1).to(x_BNW.dtype)
        if self.config.causal:
            ahead = torch.ones(count, count + 1, dtype=torch.bool, device=device).triu(2)
            bias = bias.masked_fill(ahead, float("-inf"))
        return bias


class PriorLayer(nn.Module):
    """Attention and a gated MLP, both residual."""

    def __init__(self, width: int, config: PriorConfig) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(width, config), GatedMLP(width)

    def forward(self, x_BNW: Tensor, bias_HNN: Tensor) -> Tensor:
        x_BNW = x_BNW + self.attention(x_BNW, bias_HNN)
        return x_BNW + self.mlp(x_BNW)


class Attention(nn.Module):
    """Attention by cosines, with one key and value for all heads and a learned one that belongs to no token."""

    def __init__(self, width: int, config: PriorConfig) -> None:
        super().__init__()
        self.heads, self.each = config.heads, config.head_width
        self.norm = nn.LayerNorm(width, bias=False)
        self.query = nn.Linear(width, self.heads * self.each, bias=False)
        self.key_value = nn.Linear(width, 2 * self.each, bias=False)
        self.nothing = nn.Parameter(torch.randn(2, self.each))
        self.out = nn.Linear(self.heads * self.each, width, bias=False)
        self.out_norm = nn.LayerNorm(width, bias=False)

    def forward(self, x_BNW: Tensor, bias_HNN: Tensor) -> Tensor:
        normal = self.norm(x_BNW)
        query = self.query(normal).unflatten(2, (self.heads, self.each)).transpose(1, 2)
        key, value = self.key_value(normal)[:, None].chunk(2, dim=-1)
        query, key = _rotated(query), _rotated(key)
        no_key, no_value = self.nothing.to(key.dtype)[:, None, None, None].expand(-1, len(key), 1, 1, -1)
        key, value = torch.cat([no_key, key], 2), torch.cat([no_value, value], 2)
        query, key = functional.normalize(query, dim=-1), functional.normalize(key, dim=-1)
        mixed = functional.scaled_dot_product_attention(
            query,
            key.expand(-1, self.heads, -1, -1).to(query.dtype),
            value.expand(-1, self.heads, -1, -1).to(query.dtype),
            attn_mask=bias_HNN.to(query.dtype),
            scale=SHARPNESS,
        )
        mixed = self.out_norm(self.out(mixed.transpose(1, 2).flatten(2)))
        return mixed


class GatedMLP(nn.Module):
    """Norm, an MLP four times as wide whose units are gated (Shazeer 2020, arXiv 2002.05202, SwiGLU)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, bias=False)
        self.expand = nn.Linear(width, 8 * width, bias=False)
        self.contract = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        content, gate = self.expand(self.norm(x)).chunk(2, dim=-1)
        narrow: Tensor = self.contract(content * functional.silu(gate))
        return narrow


def _rotated(x_BHNK: Tensor) -> Tensor:
    """Pairs of channels, of the first 32, turned by an angle a position (Su et al. 2021, arXiv 2104.09864)."""
    turned = min(32, x_BHNK.shape[-1])
    rates = 1e4 ** -(torch.arange(0, turned, 2, device=x_BHNK.device) / turned)
    angle = torch.arange(x_BHNK.shape[2], device=x_BHNK.device)[:, None] * rates
    cosine, sine = angle.cos().to(x_BHNK.dtype), angle.sin().to(x_BHNK.dtype)
    one, other = x_BHNK[..., :turned].unflatten(-1, (-1, 2)).unbind(-1)
    pairs = torch.stack([one * cosine - other * sine, other * cosine + one * sine], -1).flatten(-2)
    return torch.cat([pairs, x_BHNK[..., turned:]], -1)
