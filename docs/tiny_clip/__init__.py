"""How the embedded CLIP was made: renderer, captions, training and evaluation."""
