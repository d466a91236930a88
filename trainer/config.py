"""What a recipe says: feature spaces with their losses, the decoder's sizes, how to train, which generator."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from fmri2img.features.extractors import AnyExtractor
from fmri2img.generators import AnyGenerator
from fmri2img.models.config import DecoderConfig
from fmri2img.models.prior import PriorConfig
from fmri2img.trainer.objectives.settings import Loss, Losses, ResponseLosses, check_losses


class Strict(BaseModel):
    """Unknown keys are refused and values cannot be set again."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SpaceConfig(Strict):
    """A feature space to predict, what makes it, and the losses on it."""

    extractor: AnyExtractor
    losses: Losses = Losses(mse=Loss())
    prior: PriorConfig | None = None
    factor: float | None = Field(
        default=None,
        gt=0,
        description="features times this number are predicted, as published decoders do, whose weights depend on it; "
        "without it they are centred and scaled by the training pictures'",
    )

    @property
    def directed(self) -> bool:
        """Whether a loss compares directions, so that the decoder has a projector for this space."""
        return self.losses.directed

    @model_validator(mode="after")
    def _prior_is_trained(self) -> "SpaceConfig":
        if (self.prior is None) != (self.losses.prior is None):
            has, lacks = ("a prior", "losses.prior") if self.prior else ("a loss prior", "prior")
            raise ValueError(
                f"{has} and no {lacks}: a diffusion prior and its loss come together; add `{lacks}: {{}}`, or take "
                "the other out"
            )
        predicted = [kind for kind in ("mse", "l1") if getattr(self.losses, kind) is not None]
        if self.prior is not None and self.prior.use == "mean" and not predicted:
            raise ValueError(
                "prior.use mean makes pictures of what the branch predicts, which no loss trains to be the mean: add "
                "mse or l1 to losses, or use sample"
            )
        return self

    @model_serializer(mode="wrap")
    def _factor_only_where_set(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key != "factor" or value is not None}

    @model_validator(mode="before")
    @classmethod
    def _as_it_was(cls, told: Any) -> Any:
        old = [
            key
            for key in ("regression", "contrastive", "temperature")
            if isinstance(told, dict) and key in told
        ]
        if not old:
            return told
        kinds = []
        if told.get("regression", 1):
            kinds.append(f"mse: {{weight: {told.get('regression', 1.0)}}}")
        if told.get("contrastive", 0) or "temperature" in told:
            settings = [f"weight: {told['contrastive']}"] if "contrastive" in told else []
            settings += [f"temperature: {told['temperature']}"] if "temperature" in told else []
            kinds.append(f"contrastive: {{{', '.join(settings)}}}")
        raise ValueError(f"{', '.join(old)} of a space is now said as losses: {{{', '.join(kinds)}}}")


class TrainingConfig(Strict):
    """One stage of training. Batch, learning rate and samples of a step do not depend on the number of workers."""

    seed: int = 0
    steps: int = Field(default=1000, ge=0)
    global_batch: int = Field(default=96, ge=1, description="rows of one step over all workers and subjects")
    lanes: int = Field(
        default=8, ge=1, description="fixed shares of the data; the number of workers must divide it"
    )
    learning_rate: float = Field(default=3e-4, gt=0)
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of the steps over which the rate rises")
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, ge=0, description="largest gradient norm; 0 does not clip")
    rates: dict[
        Literal["heads", "backbone", "branches", "priors", "rebuild"], Annotated[float, Field(ge=0)]
    ] = Field(
        default={}, description="share of the learning rate by part of the decoder; 1 where nothing is said"
    )
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    zero_stage: Literal[0, 1, 2, 3] = 2
    offload: Literal["none", "optimizer", "optimizer-and-parameters"] = Field(
        default="none", description="what ZeRO keeps in the memory of the host; parameters only at stage 3"
    )
    micro_batches: int = Field(
        default=1, ge=1, description="parts that a rank splits its rows of a step into, to save memory"
    )
    ema: float = Field(
        default=0.0, ge=0, lt=1, description="decay of the moving average of the weights; 0 keeps none"
    )
    noise: float = Field(
        default=0.0, ge=0, description="standard deviation of noise added to z-scored responses"
    )
    start: Literal["ridge", "random"] = "ridge"
    head: Literal["posterior", "ridge", "paired", "random"] = Field(
        default="posterior",
        description="how a new head is fitted; paired: to others' latents at the same trials of one experiment; "
        "random: not at all, training alone makes it",
    )
    trial_latents: bool = Field(
        default=False,
        description="pretraining keeps every training trial's latent with the checkpoint, for paired heads",
    )
    fits_on: Literal["pictures", "trials"] = Field(
        default="pictures",
        description="rows of closed-form fits: averages over repeats, cross-validated over pictures; or single trials, "
        "over sessions, for a split by session, whose test pictures are training pictures too",
    )
    trainable: Literal["whole", "head", "head-then-whole", "lora"] = Field(
        default="whole",
        description="what finetuning changes of a pretrained decoder: everything; the head; the head for a share of "
        "the steps and then everything; the head and low-rank adapters of the backbone",
    )
    freeze: list[Literal["backbone", "branches", "priors"]] = Field(
        default=[], description="parts that whole and head-then-whole leave as they were in pretraining"
    )
    head_share: float = Field(
        default=0.3, gt=0, lt=1, description="share of the steps of head-then-whole that train the head alone"
    )
    lora_rank: int = Field(default=8, ge=1, description="rank of the adapters of lora")
    validation: float = Field(
        default=0.05, ge=0, lt=1, description="share of training pictures held out to validate"
    )
    validate_every: int = Field(default=100, ge=1)
    validate_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="largest share of the time to validate in: what would take more is left out, but not the last",
    )
    checkpoint_every: int = Field(default=500, ge=1)
    keep: int = Field(default=2, ge=1, description="newest checkpoints that stay")
    select: Literal["last", "best", "ema"] = Field(
        default="last", description="which weights the finished model has; best by validation loss"
    )
    log_every: int = Field(default=10, ge=1)
    pictures_every: int = Field(
        default=0,
        ge=0,
        description="steps between pictures reconstructed from validation responses; 0 draws none",
    )
    reading_threads: int = Field(
        default=1, ge=1, description="threads of a worker that read ahead of training"
    )

    @model_validator(mode="after")
    def _frozen(self) -> "TrainingConfig":
        if self.freeze and self.trainable in ("head", "lora"):
            raise ValueError(
                f"freeze {self.freeze} adds nothing to trainable {self.trainable}, which leaves everything shared as "
                "it was: leave freeze out, or set trainable to whole or head-then-whole"
            )
        return self

    @model_validator(mode="after")
    def _averaged(self) -> "TrainingConfig":
        if self.select == "ema" and not self.ema:
            raise ValueError("select ema needs averaged weights: set ema, such as 0.999")
        if self.pictures_every and not self.validation:
            raise ValueError(
                f"pictures_every {self.pictures_every} draws validation pictures, and there are none: set validation, "
                "such as 0.05, or pictures_every to 0"
            )
        if self.select == "best" and self.validate_share < 1:
            raise ValueError(
                f"select best would pick by the clock with validate_share {self.validate_share}, which leaves out "
                "validations: set validate_share to 1 and a larger validate_every, or select last"
            )
        return self


class Recipe(Strict):
    """A published or own system as one named object: everything that decides the finished decoder but the data."""

    name: str = Field(min_length=1)
    description: str = ""
    spaces: dict[str, SpaceConfig] = Field(min_length=1)
    losses: ResponseLosses = Field(
        default=ResponseLosses(),
        description="of the decoder as a whole: response, cycle; need decoder.rebuild",
    )
    decoder: DecoderConfig = DecoderConfig()
    pretraining: TrainingConfig = TrainingConfig()
    finetuning: TrainingConfig = TrainingConfig(zero_stage=0)
    generator: AnyGenerator

    @model_validator(mode="before")
    @classmethod
    def _without_spaces_taken_out(cls, told: Any) -> Any:
        if not isinstance(told, dict) or not isinstance(told.get("spaces"), dict):
            return told
        return told | {"spaces": {name: space for name, space in told["spaces"].items() if space is not None}}

    @model_validator(mode="after")
    def _starts_as_its_architecture_can(self) -> "Recipe":
        if self.decoder.architecture != "residual":
            for stage, config in (("pretraining", self.pretraining), ("finetuning", self.finetuning)):
                if config.start == "ridge":
                    raise ValueError(
                        f"{stage}.start ridge needs linear paths that decoder.architecture {self.decoder.architecture} "
                        "does not have: set it to random"
                    )
                if config.head != "random" and stage == "finetuning":
                    raise ValueError(
                        f"{stage}.head {config.head} needs what decoder.architecture {self.decoder.architecture} does "
                        "not keep: set it to random"
                    )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        for name in self.spaces:
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"feature space {name!r}: a name holds letters, digits, - and _ only")
        missing = [name for name in self.generator.spaces if name not in self.spaces]
        if missing:
            raise ValueError(f"the generator needs {missing}, the recipe predicts {sorted(self.spaces)}")
        check_losses({name: space.losses for name, space in self.spaces.items()})
        if self.decoder.rebuild != any(True for _ in self.losses):
            has, lacks = (
                ("decoder.rebuild", "losses.response or losses.cycle")
                if self.decoder.rebuild
                else ("losses.response or losses.cycle", "decoder.rebuild")
            )
            raise ValueError(f"{has} and no {lacks}: they come together; add it, or take the other out")
        if self.pretraining.freeze:
            raise ValueError(
                f"pretraining.freeze {self.pretraining.freeze} would leave parts as they began: only finetuning freezes"
            )
        return self
