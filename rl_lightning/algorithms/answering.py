"""A policy's answers to a few questions, from Python."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import nn

from rl_lightning.algorithms.training import TrainedModule
from rl_lightning.errors import UserError
from rl_lightning.generation import Sampling
from rl_lightning.generation.ask import answers
from rl_lightning.options import read_options
from rl_lightning.text import Messages

#: Tokens of an answer at most, where nobody says.
_LONGEST = 256


class Answering(TrainedModule):
    """A module with a policy that can be asked."""

    policy: nn.Module

    def generate(
        self,
        prompts: str | Messages | Sequence[str | Messages],
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        samples: int = 1,
        seed: int = 0,
        system_prompt: str | None = None,
        **sampling: Any,
    ) -> str | list[str] | list[list[str]]:
        """Return the policy's answers. The policy is loaded if it is not yet; `rl_lightning.load` returns a trained one.

        With a chat template, a text is the message of a user. Without one, the policy continues the text.

        Args:
            prompts: a text, chat messages, or a list of those.
            max_new_tokens: cap on the length of an answer in tokens; 256, or what the policy's context leaves, if None.
            temperature: 0 takes the most probable token.
            samples: answers to each prompt.
            seed: of the random numbers; the same seed gives the same answers.
            system_prompt: a system message for each prompt that does not bring its own; needs a chat template.
            **sampling: further options of `rl_lightning.generation.Sampling`, such as `top_p` or `stop`.

        Returns:
            For one prompt its answer, for a list a list of answers. With several samples, a list of them in place of each answer.

        Raises:
            UserError: for an unknown option, and for a prompt that is empty or too long.

        Example:
            >>> SFT(policy="embedded").generate("3+9-4=")
            '12;8#8'
        """
        if not isinstance(prompts, str | list | tuple):
            raise UserError(f"generate takes a text, chat messages or a list of these, not {type(prompts).__name__}")
        if not prompts and not isinstance(prompts, str):
            return []
        self.configure_model()
        longest = _LONGEST if max_new_tokens is None else max_new_tokens
        options = read_options(Sampling, {"max_new_tokens": longest, "temperature": temperature, **sampling})
        several = not isinstance(prompts, str) and not (prompts and isinstance(prompts[0], dict))
        questions = cast("list[str | Messages]", list(prompts) if several else [prompts])
        asked = {"fits": max_new_tokens is None, "samples": samples, "seed": seed, "system_prompt": system_prompt}
        with self._quiet():
            said = answers(self.policy, self.policy_files, questions, options, **asked)  # type: ignore[arg-type]
        found: list[Any] = said if samples > 1 else [one for (one,) in said]
        return found if several else found[0]

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """Ask inside this: the policy whole and in evaluation mode, without gradients."""
        if self._trainer is not None:
            with self.rollout_mode():
                yield
            return
        was_training = self.policy.training
        self.policy.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.policy.train(was_training)

    def rollout_mode(self) -> contextlib.AbstractContextManager[None]:
        """Return the context in which the policy is sampled during a run."""
        raise TypeError(f"{type(self).__name__} must define rollout_mode()")
