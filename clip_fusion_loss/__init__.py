"""A language-driven loss for infrared-visible image fusion.

A frozen CLIP embeds a sentence, both source images and the fused image. The loss is small when
the fused image differs from the sources in the direction that the sentence describes (Wang et al.,
ACM MM 2025, arXiv 2402.16267).
"""

from . import functional
from .encoder import FrozenCLIP
from .loss import FusionLossTerms, LanguageDrivenFusionLoss, SourceEmbeddings
from .objective import EmbeddedFusionModel, FusionObjective
from .patches import PatchGeometry
from .regularizers import IntensityGradientLoss, StructureLoss, VGGMaxFeatureLoss

__version__ = "0.3.0"

__all__ = [
    "EmbeddedFusionModel",
    "FrozenCLIP",
    "FusionLossTerms",
    "FusionObjective",
    "IntensityGradientLoss",
    "LanguageDrivenFusionLoss",
    "PatchGeometry",
    "SourceEmbeddings",
    "StructureLoss",
    "VGGMaxFeatureLoss",
    "functional",
]
