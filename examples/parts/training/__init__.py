"""Training loops, and what a training leaves behind."""
