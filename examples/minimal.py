"""A minimal training loop: fuse one real pair as a sentence describes."""

from pathlib import Path

import torch
from torch import nn
from torchvision.io import read_image, write_png  # torchvision comes with the package

from clip_fusion_loss import LanguageDrivenFusionLoss

PROMPT, STEPS, CROP = "a dark image", 150, 96

torch.manual_seed(0)
folder = Path(__file__).parent / "data" / "tno"
visible, infrared = (read_image(str(folder / kind / "4.png"))[:1] / 255 for kind in ("vi", "ir"))
pair = torch.stack([visible, infrared], dim=1)  # (1, 2, H, W) in [0, 1]

network = nn.Sequential(
    nn.Conv2d(2, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 1, 5, padding=2)
)  # what to add to the average of the sources
criterion = LanguageDrivenFusionLoss.tiny(PROMPT)  # for research: .paper(PROMPT).to(device)
optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)

for step in range(STEPS):
    top, left = (int(torch.randint(side - CROP, ())) for side in pair.shape[2:])
    crop = pair[..., top : top + CROP, left : left + CROP]
    fused = crop.mean(1, keepdim=True) + network(crop)
    loss = criterion(fused=fused, visible=crop[:, :1], infrared=crop[:, 1:])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 25 == 24:
        print(f"step {step + 1} of {STEPS}, loss {loss.item():.2f}", flush=True)

with torch.no_grad():
    fused = pair.mean(1) + network(pair)[0]
sheet = torch.cat([infrared, visible, fused], dim=2).clamp(0, 1)
write_png((255 * sheet).round().to(torch.uint8), "minimal.png")
print("minimal.png: infrared, visible, fused")
