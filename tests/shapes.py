"""Rows of every shape that sources recognise, as data sets have them."""

from __future__ import annotations

import json
from typing import Any


def asked(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def told(answer: str) -> str:
    return f"\n\nHuman: 1+1=\n\nAssistant: 2\n\nHuman: 2+1=\n\nAssistant: {answer}"


TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add.",
        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
    },
}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": "1+2"}}}],
}

#: Name of the shape, as TRL's documentation or the data set that made it known calls it → a row.
SHAPES: dict[str, dict[str, Any]] = {
    "language modelling": {"text": "1+2=3"},
    "messages": {"messages": [asked("1+2="), said("3")]},
    "messages, several turns": {
        "messages": [{"role": "system", "content": "#"}, asked("1+2="), said("3"), asked("4+2="), said("6")]
    },
    "messages that end with the user": {"messages": [asked("1+2="), said("3"), asked("4+2=")]},
    "messages in text parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "2="}]},
            {"role": "assistant", "content": [{"type": "text", "text": "3"}]},
        ]
    },
    "messages with tools": {
        "messages": [asked("1+2="), CALL, {"role": "tool", "name": "add", "content": "3"}, said("3")],
        "tools": json.dumps([TOOL]),
    },
    "prompt": {"prompt": "1+2="},
    "prompt, messages": {"prompt": [asked("1+2=")]},
    "prompt, answer": {"prompt": "1+2=", "answer": "3"},
    "prompt, completion": {"prompt": "1+2=", "completion": "3"},
    "prompt, completion, messages": {"prompt": [asked("1+2=")], "completion": [said("3")]},
    "preference": {"prompt": "1+2=", "chosen": "3", "rejected": "4"},
    "preference, messages": {"prompt": [asked("1+2=")], "chosen": [said("3")], "rejected": [said("4")]},
    "preference, implicit prompt": {"chosen": "1+2= 3", "rejected": "1+2= 4"},
    "preference, implicit prompt, messages": {
        "chosen": [asked("1+2="), said("3")],
        "rejected": [asked("1+2="), said("4")],
    },
    "UltraFeedback": {
        "prompt": "1+2=",
        "prompt_id": "9",
        "chosen": [asked("1+2="), said("3")],
        "rejected": [asked("1+2="), said("4")],
        "messages": [asked("1+2="), said("3")],
        "score_chosen": 8.0,
        "score_rejected": 6.5,
    },
    "hh-rlhf": {"chosen": told("3"), "rejected": told("4")},
    "Intel's orca pairs": {"system": "#", "question": "1+2=", "chosen": "3", "rejected": "4"},
    "unpaired preference (KTO)": {"prompt": "1+2=", "completion": "3", "label": True},
    "unpaired preference, messages": {"prompt": [asked("1+2=")], "completion": [said("4")], "label": False},
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "1+2="}, {"from": "gpt", "value": "3"}],
        "system": "#",
    },
    "Alpaca": {"instruction": "1+2=", "input": "5", "output": "3"},
    "GSM8K": {"question": "1+2=", "answer": "1+2=<<1+2=3>>3\n#### 3"},
    "MATH": {"problem": "1+2=", "solution": "It is $\\boxed{3}$.", "level": "1"},
    "MATH-500": {"problem": "1+2=", "solution": "1+2=3", "answer": "3"},
    "verl": {
        "data_source": "sums",
        "prompt": [asked("1+2=")],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "3"},
        "extra_info": {"index": 0},
    },
    "prompt, chat_template_kwargs": {
        "prompt": [asked("1+2=")],
        "answer": "3",
        "chat_template_kwargs": {"enable_thinking": False},
    },
}
#: Shapes that are recognised, and refused by name.
REFUSED: dict[str, dict[str, Any]] = {
    "stepwise supervision": {"prompt": "1+2=", "completions": ["1", "3"], "labels": [True, False]},
    "images in messages": {
        "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "1+2="}]}, said("3")]
    },
    "a column of images": {"prompt": [asked("1+2=")], "completion": [said("3")], "images": ["a.png"]},
    "two that contradict": {"prompt": "1+2=", "completion": "3", "messages": [asked("5="), said("5")]},
    "none": {"left": "1+2=", "right": "3"},
}
