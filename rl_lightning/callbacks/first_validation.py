"""Validation before the first step, so that every curve of held-out data has its beginning."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from rl_lightning.typed import Typed


class FirstValidation(Callback, metaclass=Typed):
    """Run the whole validation before the first optimizer step of a run, and log it as step 0.

    Lightning's own `num_sanity_val_steps` runs it too, but logs nothing. A run that goes on from a checkpoint has its beginning
    already, unless it was stopped in the midst of this. `--trainer.limit_val_batches=0` switches all validation off.

    List it after `GracefulStop`, if you list both: before that one has started, a signal ends a run without a checkpoint.

    Args:
        enabled: False trains at once.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._done = False

    def state_dict(self) -> dict[str, bool]:
        """Return whether the run has its beginning."""
        return {"done": self._done}

    def load_state_dict(self, state_dict: dict[str, bool]) -> None:
        """Go on where a checkpoint was made."""
        self._done = state_dict["done"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate, as Lightning does between two epochs."""
        begun = self._done or trainer.global_step > 0 or trainer.current_epoch > 0
        quick: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
        if not self.enabled or begun or quick or not trainer.enable_validation:
            return
        connector = trainer._logger_connector
        trainer.validating = True  # Lightning finds the loop that runs by this
        first = connector._first_loop_iter
        trainer.fit_loop.epoch_loop.val_loop.run()
        connector._first_loop_iter = first
        trainer.training = True
        self._done = True
