"""From text to token ids: prompts and responses get the same tokens in training, sampling and scoring."""

from rl_lightning.text.calls import CallFormat
from rl_lightning.text.dialogue import Dialogue
from rl_lightning.text.format import ReadPrompt, TextFormat
from rl_lightning.text.messages import (
    Message,
    Messages,
    content_text,
    has_lone_surrogate,
    roles,
    said,
    transcript,
    without_lone_surrogates,
)
from rl_lightning.text.template import ChatTemplate, Extras, TurnEnd, completed
from rl_lightning.text.tokens import cut_left
from rl_lightning.text.turns import Written, written_rows

__all__ = [
    "CallFormat",
    "ChatTemplate",
    "Dialogue",
    "Extras",
    "Message",
    "Messages",
    "ReadPrompt",
    "TextFormat",
    "TurnEnd",
    "Written",
    "completed",
    "content_text",
    "cut_left",
    "has_lone_surrogate",
    "roles",
    "said",
    "transcript",
    "without_lone_surrogates",
    "written_rows",
]
