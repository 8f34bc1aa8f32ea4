"""Callbacks: stages of a rollout, tables and histograms, checkpoints and exports, guards against failures."""

from rl_lightning.callbacks.adaptive_kl import AdaptiveKL
from rl_lightning.callbacks.best_of_n import BestOfN
from rl_lightning.callbacks.collapse import CollapseWarning, SpreadWarning
from rl_lightning.callbacks.dashboard import Dashboard
from rl_lightning.callbacks.durable_logs import DurableLogs
from rl_lightning.callbacks.dynamic_sampling import DynamicSampling
from rl_lightning.callbacks.ensemble_reward import EnsembleReward
from rl_lightning.callbacks.first_validation import FirstValidation
from rl_lightning.callbacks.graceful_stop import GracefulStop
from rl_lightning.callbacks.group_normalize import GroupNormalize
from rl_lightning.callbacks.group_shape import GroupShape
from rl_lightning.callbacks.guards import NonFiniteGuard
from rl_lightning.callbacks.held_out_divergence import HeldOutDivergence
from rl_lightning.callbacks.hf_export import HFExport
from rl_lightning.callbacks.histograms import Histograms
from rl_lightning.callbacks.overlong import OverlongShaping
from rl_lightning.callbacks.overlong_filter import OverlongFilter
from rl_lightning.callbacks.predictions import PredictionWriter
from rl_lightning.callbacks.progress import RolloutLines, RolloutProgressBar
from rl_lightning.callbacks.rejection_sampling import RejectionSampling
from rl_lightning.callbacks.reward_watch import RewardWatch
from rl_lightning.callbacks.rng_state import RNGState
from rl_lightning.callbacks.room import RoomWarning
from rl_lightning.callbacks.run_card import RunCard
from rl_lightning.callbacks.run_lock import RunLock
from rl_lightning.callbacks.samples import SampleTable
from rl_lightning.callbacks.speed import Speed
from rl_lightning.callbacks.step_checkpoint import StepCheckpoint
from rl_lightning.callbacks.summary import RunSummary
from rl_lightning.hooks import RolloutCallback

__all__ = [
    "AdaptiveKL",
    "BestOfN",
    "CollapseWarning",
    "Dashboard",
    "DurableLogs",
    "DynamicSampling",
    "EnsembleReward",
    "FirstValidation",
    "GracefulStop",
    "GroupNormalize",
    "GroupShape",
    "HFExport",
    "HeldOutDivergence",
    "Histograms",
    "NonFiniteGuard",
    "OverlongFilter",
    "OverlongShaping",
    "PredictionWriter",
    "RNGState",
    "RejectionSampling",
    "RewardWatch",
    "RolloutCallback",
    "RolloutLines",
    "RolloutProgressBar",
    "RoomWarning",
    "RunCard",
    "RunLock",
    "RunSummary",
    "SampleTable",
    "Speed",
    "SpreadWarning",
    "StepCheckpoint",
]
