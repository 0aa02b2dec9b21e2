"""How the bundled CLIP was made: renderer, captions, training and evaluation."""

import sys
from pathlib import Path

# It writes files as the examples do, which are programs and not a package.
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
