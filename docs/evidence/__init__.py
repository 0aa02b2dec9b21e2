"""The programs that make the results, the table of reaches and the figures of what a step costs."""

import sys
from pathlib import Path

# They build on the examples, which are programs and not a package.
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
