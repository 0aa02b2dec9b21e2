"""Images and pairs of them: on disk, in memory, and cropped for training."""
