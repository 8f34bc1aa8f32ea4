"""Global random number generators in checkpoints."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from rl_lightning.typed import Typed


class RNGState(Callback, metaclass=Typed):
    """Save the states of the global random number generators of Python, NumPy and torch in checkpoints, and restore them.

    The package itself does not use them: prompt order, sampling and minibatches are functions of the seed and of their own
    numbers. This is for a user's code that does, such as a reward function, a generator or a module.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None
        self._before_validation: dict[str, object] | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the present states: a validation that is interrupted is repeated from here."""
        self._before_validation = _states()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the states from before the validation: it is complete."""
        self._before_validation = None

    def state_dict(self) -> dict[str, object]:
        """Return the states as tensors, numbers and lists; during a validation, those from before it."""
        return self._before_validation or _states()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the checkpoint's states until training starts, since set-up may draw random numbers."""
        self._loaded = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the states. The training loader has a length, so Lightning has not fetched a batch yet."""
        if self._loaded is None:
            return
        version, internal, gauss = self._loaded["python"]
        random.setstate((version, tuple(internal), gauss))
        name, keys, position, has_gauss, cached = self._loaded["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
        torch.set_rng_state(self._loaded["torch"].cpu())
        if self._loaded["cuda"] and len(self._loaded["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in self._loaded["cuda"]])
        self._loaded = None


def _states() -> dict[str, object]:
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
