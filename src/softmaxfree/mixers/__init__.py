"""Token mixers: softmax-free attention and what it is compared with, behind one interface."""

from softmaxfree.mixers.activator import GatedLinearUnit
from softmaxfree.mixers.cosformer import CosformerAttention
from softmaxfree.mixers.efficient import EfficientAttention
from softmaxfree.mixers.elu_linear import EluLinearAttention
from softmaxfree.mixers.focused import FocusedAttention
from softmaxfree.mixers.gaussian import GaussianAttention
from softmaxfree.mixers.hedgehog import HedgehogAttention
from softmaxfree.mixers.inline import InjectiveAttention
from softmaxfree.mixers.linformer import LinformerAttention
from softmaxfree.mixers.mala import MagnitudeAwareAttention
from softmaxfree.mixers.mhla import BlockMixingAttention
from softmaxfree.mixers.mixer import AbstractAttention, AbstractMixer
from softmaxfree.mixers.nala import NormAwareAttention
from softmaxfree.mixers.nystrom import NystromAttention
from softmaxfree.mixers.performer import PerformerAttention
from softmaxfree.mixers.polaformer import PolarityAwareAttention
from softmaxfree.mixers.rala import RankAugmentedAttention
from softmaxfree.mixers.registry import create_mixer, list_mixers, mixer_class, register
from softmaxfree.mixers.relu_linear import ReluLinearAttention
from softmaxfree.mixers.rpe_kernel import RelativeKernelAttention
from softmaxfree.mixers.sigmoid import SigmoidAttention
from softmaxfree.mixers.soft import SoftmaxFreeAttention
from softmaxfree.mixers.softmax import SoftmaxAttention
from softmaxfree.mixers.softn import RowNormalizedAttention
from softmaxfree.mixers.softplus import SoftplusAttention
from softmaxfree.mixers.spatial_reduction import SpatialReductionAttention
from softmaxfree.mixers.ttt import OneStepTraining

__all__ = [
    "AbstractAttention",
    "AbstractMixer",
    "BlockMixingAttention",
    "CosformerAttention",
    "EfficientAttention",
    "EluLinearAttention",
    "FocusedAttention",
    "GatedLinearUnit",
    "GaussianAttention",
    "HedgehogAttention",
    "InjectiveAttention",
    "LinformerAttention",
    "MagnitudeAwareAttention",
    "NormAwareAttention",
    "NystromAttention",
    "OneStepTraining",
    "PerformerAttention",
    "PolarityAwareAttention",
    "RankAugmentedAttention",
    "RelativeKernelAttention",
    "ReluLinearAttention",
    "RowNormalizedAttention",
    "SigmoidAttention",
    "SoftmaxAttention",
    "SoftmaxFreeAttention",
    "SoftplusAttention",
    "SpatialReductionAttention",
    "create_mixer",
    "list_mixers",
    "mixer_class",
    "register",
]
