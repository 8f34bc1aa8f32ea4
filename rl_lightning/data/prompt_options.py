"""Options of how examples are rendered, cut and refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rl_lightning.data.sources.paths import near_misses
from rl_lightning.errors import UserError
from rl_lightning.text import completed
from rl_lightning.typed import Typed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class PromptOptions(metaclass=Typed):
    """How examples become token ids.

    The chat template, with the values and the prefix below, becomes the policy's own: it is exported with it, so that whoever
    loads the trained policy renders prompts as training did.

    Args:
        max_length: longest prompt in tokens; no limit but the model's context if null.
        system_prompt: put before every prompt, where a chat template is used.
        chat_template: true or false, whether to use the tokenizer's, by default if it has one; or the path of a template file
            (`.jinja`) to use in its place.
        on_bad: an unusable example or row stops the run (`error`), and every one is named, or is left out and counted by
            reason (`drop`).
        chat_template_kwargs: values that the chat template is given, such as `{enable_thinking: false}`; those of an example's own
            come first.
        assistant_prefix: text that every answer begins with, such as `"<think>\\n"`. It ends the prompt in sampling, learning and
            judging; the policy does not write it. Needs a chat template.
        truncation: what becomes of a prompt longer than `max_length`: it is left out and counted (`drop`), or loses its
            beginning and is counted (`left`; a special token in front stays); what `on_bad` says if null.
    """

    max_length: int | None = None
    system_prompt: str | None = None
    chat_template: bool | str | None = None
    on_bad: Literal["error", "drop"] = "error"
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    assistant_prefix: str | None = None
    truncation: Literal["drop", "left"] | None = None

    def __post_init__(self) -> None:
        """Refuse options that mean nothing without another."""
        if self.truncation is not None and self.max_length is None:
            raise UserError(
                f"prompt_options.truncation: {self.truncation} without a limit: set prompt_options.max_length"
            )
        for name in self.chat_template_kwargs:
            if not name.isidentifier():
                raise UserError(f"prompt_options.chat_template_kwargs: {name!r} is no name that a template could use")

    @property
    def uses_template(self) -> bool | None:
        """Whether the chat template is used; None to use the one that there is."""
        return True if isinstance(self.chat_template, str) else self.chat_template

    @property
    def encoding(self) -> dict[str, Any]:
        """These options as arguments of `encode_prompts`."""
        return {
            "max_prompt_length": self.max_length,
            "truncation": self.truncation,
            "system_prompt": self.system_prompt,
            "chat_template": self.uses_template,
            "on_bad": self.on_bad,
        }

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Give a policy's tokenizer the chat template that these options ask for; asked twice, it is the same.

        Raises:
            UserError: if a template is needed and there is none, or it is none that jinja reads.
        """
        template = tokenizer.chat_template
        if isinstance(self.chat_template, str):
            template = _read(self.chat_template)
        for name, value in (
            ("chat_template_kwargs", self.chat_template_kwargs),
            ("assistant_prefix", self.assistant_prefix),
        ):
            if value and (template is None or self.chat_template is False):
                raise UserError(
                    f"prompt_options.{name} is set, and there is no chat template: give the path of one as prompt_options.chat_template"
                )
        if template is None or self.chat_template is False:
            return
        values, prefix = self.chat_template_kwargs, self.assistant_prefix or ""
        if isinstance(template, Mapping):  # some tokenizers have several, by name
            tokenizer.chat_template = {name: completed(text, values, prefix) for name, text in template.items()}
        else:
            tokenizer.chat_template = completed(template, values, prefix)
        if isinstance(self.chat_template, str):
            _check(tokenizer, self.chat_template)


def _read(where: str) -> str:
    path = Path(where).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"prompt_options.chat_template: there is no file {where}{near_misses(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompt_options.chat_template: {where} cannot be read: {error}") from error


def _check(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Refuse a file that is no template; what a template refuses is said where it refuses it."""
    from jinja2 import TemplateSyntaxError

    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "1+2="}], tokenize=False, add_generation_prompt=True)
    except TemplateSyntaxError as error:
        raise UserError(
            f"prompt_options.chat_template: {where}:{error.lineno} is no chat template: {error.message}"
        ) from error
    except Exception:  # a template may refuse a short conversation and render others
        return
