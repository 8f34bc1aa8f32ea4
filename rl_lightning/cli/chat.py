"""Talking to a trained model: `rl-lightning chat RUN`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from rl_lightning.errors import UserError
from rl_lightning.text import Messages


def chat(parser: argparse.ArgumentParser, args: Sequence[str]) -> None:
    """Answer one prompt, or every line that is typed.

    Args:
        parser: to add the options to.
        args: of the command line, after `chat`.

    Raises:
        UserError: if there is no policy at the path.
    """
    parser.add_argument("run", help="default_root_dir of a run, a model directory, or a checkpoint")
    parser.add_argument("prompt", nargs="?", help="one prompt; without it, lines are read until an empty one")
    parser.add_argument("--max_new_tokens", type=int, default=None)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the most probable token")
    parser.add_argument("--system", help="system message; needs a chat template")
    chosen = parser.parse_args(args)

    from rl_lightning.algorithms.answering import Answering
    from rl_lightning.loading import load
    from rl_lightning.quiet import calm

    calm()
    module = load(chosen.run)
    if not isinstance(module, Answering):
        raise UserError(f"{chosen.run} holds a {type(module).__name__}, which answers nothing")

    def answer(question: str | Messages) -> str:
        said = module.generate(question, chosen.max_new_tokens, chosen.temperature, system_prompt=chosen.system or None)
        return str(said)

    if chosen.prompt is not None:
        print(answer(chosen.prompt))
        return
    _converse(answer, remembers=module.policy_files.tokenizer.chat_template is not None)


def _converse(answer: Callable[[str | Messages], str], remembers: bool) -> None:
    """Answer lines until an empty one or the end of the input.

    Args:
        answer: a question, or the messages of a conversation → the answer.
        remembers: whether a line goes on with the conversation; without a chat template, each line is a text of its own.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise UserError(
            "there is no input to read questions from: give one after the run, as in  rl-lightning chat RUN '3+4='"
        )
    if sys.stdin.isatty():
        print(
            "An empty line ends."
            if remembers
            else "Each line is continued, for the model has no chat template. An empty one ends."
        )
    messages: Messages = []
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if not line:
            return
        messages.append({"role": "user", "content": line})
        try:
            said = answer(messages if remembers else line)
        except UserError as error:  # too long, for instance: the conversation need not end
            print(f"rl_lightning: {error}", file=sys.stderr)
            messages.pop()
            continue
        messages.append({"role": "assistant", "content": said})
        print(said, flush=True)
