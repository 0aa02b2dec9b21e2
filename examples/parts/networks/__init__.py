"""Fusion networks to try the loss on; each is called `net(visible, infrared) -> fused`."""
