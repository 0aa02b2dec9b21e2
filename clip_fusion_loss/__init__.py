"""A loss for infrared-visible image fusion that follows a sentence.

Frozen CLIP embeds the sentence, the sources and the fused image; the loss asks that the fused
image lies where the sentence points (Wang et al., ACM MM 2025, arXiv 2402.16267).
"""

from . import functional
from .encoder import FrozenCLIP
from .fusion_model import EmbeddedFusionModel
from .loss import FusionLossTerms, LanguageDrivenFusionLoss, SourceEmbeddings
from .objective import FusionObjective
from .regularizers import IntensityGradientLoss, StructureLoss, VGGMaxFeatureLoss

__version__ = "0.2.0.dev0"

__all__ = [
    "EmbeddedFusionModel",
    "FrozenCLIP",
    "FusionLossTerms",
    "FusionObjective",
    "IntensityGradientLoss",
    "LanguageDrivenFusionLoss",
    "SourceEmbeddings",
    "StructureLoss",
    "VGGMaxFeatureLoss",
    "functional",
]
