"""What networks are trained under: the language-driven loss, their original ones, or both."""
