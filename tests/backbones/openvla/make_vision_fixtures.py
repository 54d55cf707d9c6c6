"""Write fixtures/vision.npz: timm's features and torchvision's normalisation. Needs timm 0.9.16; see README.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import timm
import torch
import torchvision.transforms.functional as tvf
from PIL import Image
from synthetic import images, noise, weight

FIXTURES = Path(__file__).parent / "fixtures"
TOWERS = {"featurizer": "vit_large_patch14_reg4_dinov2.lvd142m", "fused_featurizer": "vit_so400m_patch14_siglip_224"}
SMALL = {
    "featurizer": {"embed_dim": 32, "depth": 4, "num_heads": 2},
    "fused_featurizer": {"embed_dim": 48, "depth": 4, "num_heads": 3},
}
PUBLISHED = (
    ((0.484375, 0.455078125, 0.40625), (0.228515625, 0.2236328125, 0.224609375)),
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
)


def checkpoint_name(name: str) -> str:
    return name.replace(".gamma", ".scale_factor")


def features(tower: str, pixels: torch.Tensor) -> torch.Tensor:
    # created as the reference does, but for the sizes
    model = timm.create_model(
        TOWERS[tower], pretrained=False, num_classes=0, img_size=224, act_layer=None, **SMALL[tower]
    ).eval()
    state = {
        name: torch.from_numpy(weight(f"{tower}.{checkpoint_name(name)}", tuple(value.shape)))
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    with torch.inference_mode():
        return model.get_intermediate_layers(pixels, n={len(model.blocks) - 2})[0]


def main() -> None:
    pixels = torch.from_numpy(noise("pixels", (2, 2, 6, 224, 224)))
    out: dict[str, np.ndarray] = {}
    for tower, channels in (("featurizer", slice(0, 3)), ("fused_featurizer", slice(3, 6))):
        each = [features(tower, pixels[:, image, channels]) for image in range(2)]
        out[tower] = torch.stack(each, dim=1)[:, :, ::32].numpy()  # [batch, image, every 32nd patch, width]
    unit = tvf.to_tensor(Image.fromarray(images()["blocks"]))
    normalised = torch.cat([tvf.normalize(unit, list(mean), list(std)) for mean, std in PUBLISHED])
    out["normalised"] = normalised[:, ::16, ::16].numpy()
    np.savez_compressed(FIXTURES / "vision.npz", **out)
    print(f"timm {timm.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
