"""Reward functions that misbehave, by name, as a user's YAML would list them."""

import os
import subprocess
import sys
import time
from fractions import Fraction

NOT_A_FUNCTION = 3


def length(response):
    return len(response)


def everything(**kwargs):
    return len(kwargs)


def add(first, second=0):
    return first + second


def nap(seconds):
    time.sleep(seconds)
    return seconds


def die_together(directory, count):
    """End this process once as many are here."""
    open(f"{directory}/{os.getpid()}", "w").close()
    while len(os.listdir(directory)) < count:
        pass
    os._exit(3)


def note(response, file, seconds):
    """Add the response to a file, and take long."""
    with open(file, "a") as lines:
        lines.write(response)
    time.sleep(seconds)
    return 1.0


def by_response(response, default: float = 1.0):
    """Do what the response says."""
    if response == "raise":
        raise ValueError("no good")
    if response == "hang":
        time.sleep(1000)
    if response == "hang in C":
        sum(range(10**13))
    if response == "exit":
        sys.exit(3)
    if response == "die":
        os._exit(3)
    if response == "segfault":
        os.kill(os.getpid(), 11)
    if response == "nan":
        return float("nan")
    if response == "inf":
        return float("inf")
    if response == "none":
        return None
    if response == "text":
        return "1.0"
    if response == "print":
        print("noise on stdout", flush=True)
        os.write(1, b"more noise")
        subprocess.run(["echo", "noise of a child"], check=True)
    if response == "input":
        input()
    if response == "bool":
        return True
    if response == "unpicklable":
        return lambda: 0
    if response == "memory":
        return len(bytearray(2 << 30))
    if response == "fraction":
        return Fraction(1, 4)
    if response == "bomb":
        return Bomb()
    if response == "long":
        return "x" * 100_000
    if response == "huge":
        return 10**5000
    if response == "long error":
        raise ValueError("x" * 100_000)
    return default


class Bomb:
    """Ends whatever process unpickles it."""

    def __reduce__(self):
        return os._exit, (9,)


LEAKED = []


def leak(size):
    """Keep some memory for good."""
    LEAKED.append(bytearray(size))
    return float(len(LEAKED))


def pid():
    return os.getpid()


INNER = []


def start_inner_pool(file):
    """Start a pool of this process, and note the process id of its worker."""
    from rl_lightning.rewards import WorkerPool

    INNER.append(WorkerPool(timeout_s=1000))
    with open(file, "w") as out:
        out.write(str(INNER[0].map([("rewards_for_tests.pid", {})])[0].value))


def needs_more(response, threshold):
    return float(len(response) > threshold)


def positional(response, /):
    return 0.0


def always_raises(response):
    raise RuntimeError("this one is broken\nin two lines")


class Longer:
    """A picklable callable with state."""

    def __init__(self, than):
        self.than = than

    def __call__(self, response):
        return len(response) > self.than


def set_loose(file, seconds=0.0):
    """Start a process that leaves the session and the parent, note its id, and take long."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            with open(file, "w") as out:
                out.write(f"{os.getpid()}\n")
            time.sleep(1000)
        os._exit(0)
    os.wait()
    time.sleep(seconds)
    return 1.0


def terminated(how):
    """Return how a program ends that this process starts and terminates."""
    if how == "exec":
        program = subprocess.Popen(["sleep", "1000"])
        program.terminate()
        return program.wait()
    there, here = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(here, b".")
        time.sleep(1000)
    os.read(there, 1)
    os.kill(pid, 15)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def address_space():
    import resource

    return resource.getrlimit(resource.RLIMIT_AS)[0]


async def wait(response, seconds=0.0):
    """Do what the response says, after a while."""
    import asyncio

    from rl_lightning.rewards import tally

    await asyncio.sleep(seconds)
    if response == "hang":
        await asyncio.sleep(1000)
    tally.note(said=response)
    tally.count("asked")
    return by_response("hang" if response == "block" else response)


def lengths(prompts, responses, answers, metadata):
    """Return more for longer responses; whoever says `raise` spoils it for all of its list."""
    assert len(prompts) == len(answers) == len(metadata)
    return [by_response(text, 1.0 * len(text)) for text in responses]


def in_trl_style(completions, solution, log_extra=None, log_metric=None, **columns):
    """Called as by TRL's GRPOTrainer."""
    log_extra("gold", solution)
    log_metric("asked", float(len(completions)))
    said = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
    assert len(columns["prompts"]) == len(columns["completion_ids"]) == len(columns["level"])
    return [None if right is None else float(text == right) for text, right in zip(said, solution, strict=True)]


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """Called as by verl."""
    return {"score": float(solution_str == ground_truth), "pred": solution_str, "where": data_source}


def parts(response):
    return {"format": 0.25, "answer": None if response == "x" else 1.0}


def by_token(response_ids, prompt_ids, tokenizer):
    return float(sum(tokenizer[number] for number in [*prompt_ids, *response_ids]))


def by_difficulty(response, difficulty, scale=2.0):
    return difficulty * scale


async def trl_coroutine(prompts, completions, trainer_state):
    return [float(len(text)) + trainer_state.global_step for text in completions]
