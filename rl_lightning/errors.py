"""The one exception for mistakes that a user can correct."""

from __future__ import annotations

import sys
from collections.abc import Iterator

#: Module of the package → the page of the documentation that its messages name; the longest name that fits counts.
PAGES = {
    "rl_lightning": "index",
    "rl_lightning.algorithms": "algorithms/index",
    "rl_lightning.algorithms.critic": "algorithms/ppo",
    "rl_lightning.algorithms.dpo": "algorithms/dpo",
    "rl_lightning.algorithms.precision": "how-to/small-gpu",
    "rl_lightning.algorithms.ppo": "algorithms/ppo",
    "rl_lightning.algorithms.reward_model": "algorithms/reward_model",
    "rl_lightning.algorithms.rft": "algorithms/rft",
    "rl_lightning.algorithms.state": "how-to/resume",
    "rl_lightning.algorithms.training": "reference/options",
    "rl_lightning.algorithms.optimizer": "reference/options",
    "rl_lightning.audit": "how-to/trust",
    "rl_lightning.callbacks": "reference/callbacks",
    "rl_lightning.callbacks.adaptive_kl": "concepts/divergence",
    "rl_lightning.callbacks.dynamic_sampling": "algorithms/dapo",
    "rl_lightning.callbacks.guards": "concepts/diagnosis",
    "rl_lightning.callbacks.overlong": "algorithms/dapo",
    "rl_lightning.callbacks.rejection_sampling": "algorithms/rft",
    "rl_lightning.callbacks.reward_watch": "how-to/trust",
    "rl_lightning.callbacks.verifier": "how-to/trust",
    "rl_lightning.callbacks.run_lock": "inside/faults",
    "rl_lightning.cli": "reference/command-line",
    "rl_lightning.cli.chat": "how-to/export",
    "rl_lightning.cli.mistakes": "inside/faults",
    "rl_lightning.data": "start/own-data",
    "rl_lightning.data.cuts": "concepts/rollout",
    "rl_lightning.data.fits": "start/choose",
    "rl_lightning.data.prompt_options": "how-to/chat-data",
    "rl_lightning.data.record": "how-to/resume",
    "rl_lightning.data.sizes": "concepts/rollout",
    "rl_lightning.data.sources": "reference/data",
    "rl_lightning.defaults": "start/python",
    "rl_lightning.environments": "how-to/environments",
    "rl_lightning.generation": "how-to/vllm",
    "rl_lightning.generation.base": "reference/options",
    "rl_lightning.generation.options": "reference/options",
    "rl_lightning.hooks": "how-to/callback",
    "rl_lightning.loading": "how-to/export",
    "rl_lightning.manual": "reference/command-line",
    "rl_lightning.measures": "how-to/callback",
    "rl_lightning.models": "how-to/models",
    "rl_lightning.models.adapter_files": "how-to/lora",
    "rl_lightning.models.adapter_targets": "how-to/lora",
    "rl_lightning.models.adapters": "how-to/lora",
    "rl_lightning.models.quantized": "how-to/small-gpu",
    "rl_lightning.options": "reference/options",
    "rl_lightning.rewards": "start/own-reward",
    "rl_lightning.shapes": "how-to/objective",
    "rl_lightning.shipped": "reference/command-line",
    "rl_lightning.strategies": "how-to/many-gpus",
    "rl_lightning.strategies.checkpoints": "how-to/resume",
    "rl_lightning.strategies.checksums": "how-to/resume",
    "rl_lightning.text": "how-to/chat-data",
    "rl_lightning.trainer": "how-to/resume",
    "rl_lightning.typed": "reference/options",
}


class UserError(Exception):
    """A mistake of the user: a wrong option, file or combination. Its message is one line that says what to do.

    The command line prints the message without a traceback, names the page, and exits with status 2. A traceback of Python 3.11
    or newer ends with the page too.

    Args:
        message: the line.
        page: of the documentation, for `rl-lightning docs PAGE`. If None, that of a `UserError` which is being handled, else the
            one of the module that makes this one.
    """

    def __init__(self, message: str, page: str | None = None) -> None:
        super().__init__(message)
        self.page = page or _page_behind(sys.exc_info()[1]) or page_of(sys._getframe(1).f_globals.get("__name__", ""))
        self.__notes__ = [f"more: {self.more}"]

    @property
    def more(self) -> str:
        """The command that prints the page."""
        return f"rl-lightning docs {self.page}"


def page_of(module: str) -> str:
    """Return the page that speaks of a module's mistakes; that of the package for modules of others."""
    while module not in PAGES and "." in module:
        module = module.rpartition(".")[0]
    return PAGES.get(module, PAGES["rl_lightning"])


def _page_behind(error: BaseException | None) -> str | None:
    """Return the page of the first mistake in a chain of errors."""
    return next((one.page for one in reversed([*chain(error)]) if isinstance(one, UserError)), None)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, its cause, that one's cause, and so on, each once: errors that are raised again may go round in circles."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
