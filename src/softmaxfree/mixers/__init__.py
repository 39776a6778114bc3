"""Token mixers: softmax-free attention and what it is compared with, behind one interface."""

from softmaxfree.mixers.efficient import EfficientAttention
from softmaxfree.mixers.elu_linear import EluLinearAttention
from softmaxfree.mixers.focused import FocusedAttention
from softmaxfree.mixers.gaussian import GaussianAttention
from softmaxfree.mixers.hedgehog import HedgehogAttention
from softmaxfree.mixers.inline import InjectiveAttention
from softmaxfree.mixers.mala import MagnitudeAwareAttention
from softmaxfree.mixers.mixer import AbstractAttention, AbstractMixer
from softmaxfree.mixers.nala import NormAwareAttention
from softmaxfree.mixers.polaformer import PolarityAwareAttention
from softmaxfree.mixers.rala import RankAugmentedAttention
from softmaxfree.mixers.registry import create_mixer, list_mixers, mixer_class, register
from softmaxfree.mixers.soft import SoftmaxFreeAttention
from softmaxfree.mixers.softmax import SoftmaxAttention

__all__ = [
    "AbstractAttention",
    "AbstractMixer",
    "EfficientAttention",
    "EluLinearAttention",
    "FocusedAttention",
    "GaussianAttention",
    "HedgehogAttention",
    "InjectiveAttention",
    "MagnitudeAwareAttention",
    "NormAwareAttention",
    "PolarityAwareAttention",
    "RankAugmentedAttention",
    "SoftmaxAttention",
    "SoftmaxFreeAttention",
    "create_mixer",
    "list_mixers",
    "mixer_class",
    "register",
]
