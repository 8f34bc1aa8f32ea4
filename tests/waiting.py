"""What makes a run wait at a chosen moment; see `tests.waiting_rewards`."""

from lightning.pytorch import Callback

from tests.waiting_rewards import here


class Wait(Callback):
    """Waits in the second rollout.

    Args:
        moment: `generation`, or `backward`, in the midst of which it waits.
    """

    def __init__(self, moment: str) -> None:
        self.moment = moment

    def on_train_start(self, trainer, pl_module):
        def progress(done, total):
            if trainer.current_epoch == 1:
                here()

        if self.moment == "generation":
            trainer.datamodule.watch.on_progress = progress

    def on_before_backward(self, trainer, pl_module, loss):
        if self.moment == "backward" and trainer.current_epoch == 1:
            loss.register_hook(lambda gradient: here())
