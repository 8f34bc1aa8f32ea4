"""The options of sampling: lengths, temperature, truncation, and what ends a response."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rl_lightning.errors import UserError
from rl_lightning.stopping import Ends
from rl_lightning.text import TextFormat
from rl_lightning.typed import Typed


@dataclass
class Sampling(metaclass=Typed):
    """How responses are sampled.

    Args:
        max_new_tokens: cap on a response's length in tokens, the stop token included. In an environment it is the room for a whole
            episode: the policy's turns and what it hears between them.
        temperature: τ ≥ 0; 0 takes the most probable token (in evaluation only).
        top_k: sample among the k most probable tokens; 0 is off.
        top_p: sample among the fewest tokens whose probability reaches p; 1 is off.
        min_p: sample among the tokens that are at least this share as probable as the most probable one; 0 is off.
        stop: texts that end a response, beside the end of a turn in the chat template and every EOS. The token that completes
            one is the response's last, and its text stays in the response.
        stop_token_ids: further tokens that end a response.
        max_turns: turns of the policy in an episode; no cap but `max_new_tokens` if null. It and the next need an environment.
        max_turn_tokens: cap on a single turn in tokens, the stop token included; `max_new_tokens` if null.
    """

    max_new_tokens: int = 32
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    min_p: float = 0.0
    max_turns: int | None = None
    max_turn_tokens: int | None = None

    @property
    def truncates(self) -> bool:
        """Whether top-k, top-p or min-p rules tokens out."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    def cap(self, of_prompt: int | None) -> int:
        """Return the cap on new tokens of a response to a prompt whose own cap is `of_prompt` tokens; None if it has none."""
        return self.max_new_tokens if of_prompt is None else min(of_prompt, self.max_new_tokens)

    def ends(self, text: TextFormat, stop_ids: Iterable[int]) -> Ends:
        """Return what ends the responses of a policy.

        Args:
            text: how its prompts and responses become token ids.
            stop_ids: every end-of-sequence token of it.
        """
        return Ends.of(text, stop_ids, self.stop or (), self.stop_token_ids or ())

    def check_single(self) -> None:
        """Refuse caps on turns where there is no environment, and so no turns.

        Raises:
            UserError: naming the option.
        """
        for name, cap in (("max_turns", self.max_turns), ("max_turn_tokens", self.max_turn_tokens)):
            if cap is not None:
                raise UserError(
                    f"sampling.{name} is of an environment, and there is none: set data.init_args.environment"
                )

    def check(self, training: bool) -> None:
        """Refuse settings that cannot be sampled with.

        Args:
            training: refuse also those under which importance ratios would be wrong: temperature 0, top-k, top-p and min-p.

        Raises:
            UserError: names the setting.
        """
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        for name, cap in (("max_turns", self.max_turns), ("max_turn_tokens", self.max_turn_tokens)):
            if cap is not None and cap < 1:
                raise UserError(f"{name} must be at least 1, not {cap}")
        if self.max_turn_tokens is not None and self.max_turn_tokens > self.max_new_tokens:
            raise UserError(
                f"max_turn_tokens={self.max_turn_tokens} caps a turn of a response of at most "
                f"max_new_tokens={self.max_new_tokens} tokens: lower it, or raise max_new_tokens"
            )
        if self.temperature < 0 or (training and self.temperature == 0):
            raise UserError(f"temperature must be above 0 in training and at least 0 elsewhere, not {self.temperature}")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError(f"top_k must be at least 0 and top_p in (0, 1], not {self.top_k} and {self.top_p}")
        if not 0 <= self.min_p < 1:
            raise UserError(f"min_p must be in [0, 1), not {self.min_p}")
        if any(not text for text in self.stop or ()):
            raise UserError("stop: an empty text cannot end a response: remove it")
        if any(number < 0 for number in self.stop_token_ids or ()):
            raise UserError(f"stop_token_ids must be at least 0, not {min(self.stop_token_ids or ())}")
        if training and self.truncates:
            raise UserError(
                "top_k and top_p must be off (0 and 1.0) in training, and min_p (0.0): log-probabilities of the whole vocabulary are "
                "not those of the truncated distribution, so every importance ratio would be biased. They are allowed "
                "in the evaluation settings"
            )
