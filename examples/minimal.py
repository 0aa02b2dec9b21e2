"""A minimal training loop: fuse one real pair as a sentence describes."""

import signal
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C without a traceback

import torch
from PIL import Image  # Pillow and torchvision come with the package
from torchvision.transforms.functional import to_pil_image, to_tensor

from clip_fusion_loss import LanguageDrivenFusionLoss
from networks.unet import FusionUNet

PROMPT, STEPS, CROP = "a dark image", 100, 192

torch.manual_seed(0)
folder = Path(__file__).parent / "data" / "tno"
images = (Image.open(folder / kind / "9.png").convert("L") for kind in ("vi", "ir"))
visible, infrared = (to_tensor(image)[None] for image in images)  # (1, 1, H, W) in [0, 1]

network = FusionUNet()  # starts as an average of the sources
criterion = LanguageDrivenFusionLoss.tiny(PROMPT)
# For research: LanguageDrivenFusionLoss.paper(PROMPT).to(device)
optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
with torch.no_grad():
    before = network(visible, infrared)

directions = []
for step in range(STEPS):
    top, left = (int(torch.randint(side - CROP, ())) for side in visible.shape[2:])
    window = (..., slice(top, top + CROP), slice(left, left + CROP))
    crops = {"visible": visible[window], "infrared": infrared[window]}
    terms = criterion.terms(fused=network(**crops), **crops)
    optimizer.zero_grad()
    terms.total.backward()
    optimizer.step()
    directions.append(terms.direction.item())  # 0: exactly as the sentence says
    if step % 25 == 24:
        mean = sum(directions[-25:]) / 25  # single steps vary with their crops
        print(f"steps {step - 23} to {step + 1}: direction {mean:.2f}", flush=True)

with torch.no_grad():
    fused = network(visible, infrared)
print(f'"{PROMPT}": mean grey level {255 * before.mean():.0f} before, {255 * fused.mean():.0f} now')
to_pil_image(torch.cat([infrared, visible, before, fused], dim=3)[0]).save("minimal.png")
print("minimal.png: infrared, visible, before and after the training")
