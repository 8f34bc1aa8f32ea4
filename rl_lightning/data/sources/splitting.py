"""Where in a conversation, a pair or a text the prompt ends."""

from __future__ import annotations

from dataclasses import replace

from rl_lightning.data.sources.base import Example
from rl_lightning.data.sources.values import BadValue
from rl_lightning.text import Messages


def split_dialogue(messages: Messages) -> tuple[Messages, Messages | None]:
    """Split a conversation at the assistant's first turn; all of it is the prompt if the assistant does not have the last word.

    Turns of the assistant whose `weight` is 0 are not learnt: earlier ones belong to the prompt, what follows the last one that is
    learnt is left out.

    Example:
        >>> split_dialogue([{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}])
        ([{'role': 'user', 'content': '1+1='}], [{'role': 'assistant', 'content': '2'}])
    """
    if messages[-1]["role"] != "assistant":
        return _unweighed(messages), None
    asked = next((place for place, one in enumerate(messages) if one["role"] == "user"), 0)
    said = [place for place, one in enumerate(messages) if one["role"] == "assistant" and place >= asked]
    learnt = [place for place in said if messages[place].get("weight") != 0]
    if not learnt:
        raise BadValue("has no turn of the assistant whose weight is not 0: there is nothing to learn")
    first, last = learnt[0], learnt[-1]
    if first == 0:
        raise BadValue("begins with the assistant: there is nothing to answer")
    if sum(first <= place <= last for place in said) > len(learnt):
        raise BadValue(
            "has a turn of the assistant with weight 0 between others that are learnt: only earlier or later ones can be left out",
            "has weight 0 between turns that are learnt",
        )
    return _unweighed(messages[:first]), _unweighed(messages[first : last + 1])


def _unweighed(messages: Messages) -> Messages:
    return [{key: value for key, value in message.items() if key != "weight"} for message in messages]


def split_pair(chosen: Messages, rejected: Messages) -> tuple[Messages, Messages, Messages]:
    """Split two conversations where they part: what both begin with is the prompt.

    Returns:
        The prompt, the rest of the one and the rest of the other.
    """
    for turns, role in ((chosen, "response"), (rejected, "rejected")):
        if turns[-1]["role"] != "assistant":
            raise BadValue(
                "does not end with a turn of the assistant: there is no answer to compare",
                "ends without an answer",
                role,
            )
    most = min(len(chosen), len(rejected)) - 1
    same = next((place for place in range(most) if chosen[place] != rejected[place]), most)
    if same == 0:
        raise BadValue(
            "shares no first message with the rejected one: there is no prompt", "shares no prompt with the other"
        )
    if chosen[same]["role"] != "assistant" or rejected[same]["role"] != "assistant":
        what = f"parts from the rejected one at message {same + 1}, which is not the assistant's in both: the prompts differ"
        raise BadValue(what, "has another prompt than the rejected one")
    return chosen[:same], chosen[same:], rejected[same:]


def split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split two texts where they part, but inside no word; a space in between belongs to the responses.

    Example:
        >>> split_texts("The sky is blue.", "The sky is black.")
        ('The sky is', ' blue.', ' black.')
    """
    same = _common(chosen, rejected)
    following = chosen[same : same + 1] + rejected[same : same + 1]
    if same and chosen[same - 1].isalnum() and any(character.isalnum() for character in following):
        same = max((place + 1 for place in range(same) if chosen[place].isspace()), default=0)
    if chosen[:same].endswith(" "):
        same -= 1
    if not chosen[:same].strip():
        raise BadValue("begins otherwise than the rejected one: there is no prompt", "shares no prompt with the other")
    for side, role in ((chosen, "response"), (rejected, "rejected")):
        if not side[same:].strip():
            raise BadValue("holds nothing but what both begin with: there is no answer to compare", "is empty", role)
    return chosen[:same], chosen[same:], rejected[same:]


def _common(one: str, other: str) -> int:
    """Return how many characters two texts begin with in common."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def plainly(turns: Messages) -> str | Messages:
    """Return a single turn that is nothing but text as that text."""
    return str(turns[0]["content"]) if len(turns) == 1 and turns[0].keys() == {"role", "content"} else turns


def at_last_turn(example: Example) -> Example:
    """Return an example whose prompt goes up to the assistant's last turn, which is then the only one to learn or to sample.

    Args:
        example: whose response may have several turns.
    """
    turns, prompt = example.response, example.prompt
    if not isinstance(turns, list) or len(turns) < 2 or prompt is None:
        return example
    asked: Messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return replace(example, prompt=[*asked, *turns[:-1]], response=plainly(turns[-1:]))
