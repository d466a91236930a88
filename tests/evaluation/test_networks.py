"""Networks: layers read, weights found and refused, CLIP as transformers has it; stand-ins for torchvision's."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fmri2img.errors import InputError
from fmri2img.evaluation import networks
from fmri2img.evaluation.networks import Hooked, load_network
from fmri2img.files import sha256_file

CPU = torch.device("cpu")


class Small(nn.Module):
    """AlexNet's shape of names: `features.4` is followed by a part that works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 5, 3), nn.Sigmoid()),
            nn.ReLU(inplace=True),
        )
        self.fc = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(x).mul_(0).mean((2, 3)))


class Residual(nn.Module):
    """A stand-in for a ResNet: a trunk, the average over places, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.avgpool, self.fc = nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(6, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.avgpool(self.conv1(x)).flatten(1))


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of models, torchvision's stand-in, and no other place where weights could be, nor a network."""
    monkeypatch.setenv("FMRI2IMG_MODELS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(
        torch.hub, "load_state_dict_from_url", lambda url, **_: (_ for _ in ()).throw(OSError("offline"))
    )

    def get_weight(name: str) -> Any:
        assert name == "AlexNet_Weights.IMAGENET1K_V1"
        return SimpleNamespace(url="somewhere/alexnet-owt-0123.pth")

    def get_model(name: str, *, weights: None) -> nn.Module:
        return {"alexnet": Small, "resnet50": Residual}[name]()

    monkeypatch.setattr(
        networks, "_torchvision", lambda: SimpleNamespace(get_weight=get_weight, get_model=get_model)
    )
    return tmp_path


def test_a_layer_is_read_before_the_next_one_works_in_place(pictures: torch.Tensor) -> None:
    module = Small()
    wanted = module.features[:5](pictures)
    found = Hooked(module, ["features.4", "features.0"], CPU)(pictures)
    assert torch.equal(found["features.4"], wanted)
    assert torch.equal(found["features.0"], module.features[0](pictures))
    assert not module.training
    with pytest.raises(InputError, match=r"no layer features\.9"):
        Hooked(Small(), ["features.9"], CPU)


def named_by_digest(home: Path, module: nn.Module) -> Path:
    """Weights saved under a name that ends in the beginning of their SHA-256, as torchvision's do."""
    torch.save(module.state_dict(), home / "w")
    path = home / f"alexnet-owt-{sha256_file(home / 'w')[:8]}.pth"
    (home / "w").rename(path)
    return path


def test_weights_are_read_from_a_file_of_their_published_name(
    home: Path, pictures: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = Small()
    path = named_by_digest(home, module)
    monkeypatch.setattr(networks._torchvision(), "get_weight", None, raising=False)
    weight = SimpleNamespace(url=f"somewhere/{path.name}")
    models = SimpleNamespace(get_weight=lambda name: weight, get_model=lambda name, weights: Small())
    monkeypatch.setattr(networks, "_torchvision", lambda: models)
    found = load_network("alexnet", "IMAGENET1K_V1", ["features.4"], CPU)(pictures)
    assert torch.equal(found["features.4"], module.features[:5](pictures))
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(InputError, match="is damaged: its SHA-256 does not begin with"):
        load_network("alexnet", "IMAGENET1K_V1", ["features.4"], CPU)


def test_the_same_tensors_may_be_safetensors(home: Path, pictures: torch.Tensor) -> None:
    module = Small()
    save_file(module.state_dict(), home / "alexnet-owt-0123.safetensors")
    found = load_network("alexnet", "IMAGENET1K_V1", ["features.4"], CPU)(pictures)
    assert torch.equal(found["features.4"], module.features[:5](pictures))


def test_swav_is_a_residual_network_without_its_projections(home: Path, pictures: torch.Tensor) -> None:
    module = Residual()
    told = {f"module.{name}": v for name, v in module.state_dict().items() if not name.startswith("fc")}
    told |= {"module.projection_head.0.weight": torch.zeros(3), "module.prototypes.weight": torch.zeros(4)}
    torch.save(told, home / "swav_800ep_pretrain.pth.tar")
    found = load_network("swav", "swav_800ep_pretrain", ["avgpool"], CPU)(pictures)
    assert torch.equal(found["avgpool"], module.avgpool(module.conv1(pictures)))


def test_weights_of_another_network_are_refused(home: Path) -> None:
    save_file(Residual().state_dict(), home / "alexnet-owt-0123.safetensors")
    with pytest.raises(InputError, match="weights found for alexnet are of another network"):
        load_network("alexnet", "IMAGENET1K_V1", ["features.4"], CPU)


def test_weights_that_hold_more_than_tensors_are_not_loaded(home: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return print, ("loaded",)

    torch.save({"conv1.weight": Evil()}, home / "swav_800ep_pretrain.pth.tar")
    with pytest.raises(InputError, match="are not to be had"):
        load_network("swav", "swav_800ep_pretrain", ["avgpool"], CPU)


def test_missing_weights_say_where_to_bring_them(home: Path) -> None:
    with pytest.raises(
        InputError, match=r"alexnet-owt-0123.pth are not to be had \(offline\): .* FMRI2IMG_MODELS"
    ):
        load_network("alexnet", "IMAGENET1K_V1", ["features.4"], CPU)


def test_a_missing_library_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(InputError, match=r"torchvision is not installed: pip install 'fmri2img\[metrics\]'"):
        load_network("inception_v3", "IMAGENET1K_V1", ["avgpool"], CPU)


def test_clip_is_the_projected_class_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    size: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    vision = CLIPVisionConfig(image_size=224, patch_size=56, projection_dim=8, **size)
    text = CLIPTextConfig(vocab_size=20, projection_dim=8, **size)
    torch.manual_seed(0)
    whole = CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    )
    folder = tmp_path / "openai--clip-vit-large-patch14"
    whole.save_pretrained(folder)
    monkeypatch.setenv("FMRI2IMG_MODELS", str(tmp_path))
    network = load_network("clip", "openai/clip-vit-large-patch14", ["image_embeds"], CPU)
    pictures = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        pooled = whole.vision_model(pictures).pooler_output
        wanted = whole.visual_projection(pooled)
    assert torch.allclose(network(pictures)["image_embeds"], wanted, atol=1e-6)
