"""A reward that asks a language model for a mark, through any server that speaks OpenAI's chat completions.

    vllm serve MODEL                       # or llama.cpp, SGLang, Ollama, a hosted service
    rl-lightning fit --config configs/grpo.yaml --config examples/judge/grpo.yaml

It is an ``async def``, so many responses are with the judge at a time; see `concurrency` in the YAML. Only the standard library
is used: workers that compute rewards start fast.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import urllib.error
import urllib.request

from rl_lightning.rewards import tally

QUESTION = """Rate the answer to the question from 0 (useless or wrong) to 10 (right and clear).
End with a line that says "Mark: " and a whole number, and nothing else.

Question:
{prompt}

Answer:
{response}"""

#: Answers of a server that may be another one a moment later.
_BUSY = (408, 409, 429, 500, 502, 503, 504)
_MARK = re.compile(r"^\W*mark\W*(\d+)\W*$", re.IGNORECASE | re.MULTILINE)


async def judged(
    prompt: str,
    response: str,
    url: str = "http://localhost:8000/v1",
    model: str = "default",
    retries: int = 4,
    patience_s: float = 0.5,
    timeout_s: float = 30.0,
) -> float | None:
    """Return the judge's mark, in [0, 1]; None where it gives none in the form that was asked for.

    Args:
        prompt, response: of the sample.
        url: of the server, with its version.
        model: that is asked for.
        retries: times that a request is sent again where the server is busy or does not answer. The wait before it doubles each
            time, with some chance in it, so that not all come back at once.
        patience_s: the first of these waits, in seconds.
        timeout_s: longest time for one request, in seconds. All of them together have `reward_limits.timeout_s`.

    Raises:
        OSError: if the server cannot be reached, or refuses the request. The sample has failed then.
    """
    question = {"role": "user", "content": QUESTION.format(prompt=prompt, response=response)}
    body = {"model": model, "messages": [question], "temperature": 0.0, "max_tokens": 256}
    for attempt in range(retries + 1):
        try:
            answer = await asyncio.to_thread(_post, f"{url}/chat/completions", body, timeout_s)
            break
        except urllib.error.HTTPError as error:
            if error.code not in _BUSY or attempt == retries:
                raise
        except OSError:
            if attempt == retries:
                raise
        tally.count("judge/retries")
        await asyncio.sleep(patience_s * 2**attempt * (1 + random.random()))
    text = answer["choices"][0]["message"]["content"] or ""
    marks = _MARK.findall(text)
    if not marks or not 0 <= int(marks[-1]) <= 10:
        tally.count("judge/no_mark")
        tally.note(judge=text[-80:])
        return None
    return int(marks[-1]) / 10


def _post(url: str, body: dict, timeout_s: float) -> dict:
    """Send JSON, and return the JSON that comes back."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('JUDGE_API_KEY', 'none')}"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        return json.load(answer)
