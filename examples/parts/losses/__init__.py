"""Training losses: the language-driven loss, the networks' original losses, or both."""
