"""An engine of vLLM that gives its memory back between rollouts; a real one does that on a GPU alone."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from rl_lightning.errors import UserError
from rl_lightning.generation import Sampling, VLLMGenerator, vllm, vllm_engine
from rl_lightning.models import PolicyFiles
from tests.support import request_for


class Engine:
    """What `VLLMGenerator` calls of `vllm.LLM` and its engine; each is refused while it sleeps but `wake_up`, as vLLM refuses it."""

    def __init__(self):
        self.asked, self.waiting, self.asleep = [], [], False
        self.llm_engine = self

    def _note(self, name):
        assert not self.asleep or name == "wake_up", f"{name} of an engine that sleeps"
        self.asked.append(name)

    def add_request(self, name, prompt, params):
        self._note("add_request")
        self.waiting.append(name)

    def has_unfinished_requests(self):
        return bool(self.waiting)

    def step(self):
        self._note("step")
        said = SimpleNamespace(token_ids=[1], logprobs=[{1: SimpleNamespace(logprob=-0.5)}])
        return [SimpleNamespace(request_id=self.waiting.pop(), outputs=[said], finished=True)]

    def collective_rpc(self, method, kwargs):
        self._note(method)

    def reset_prefix_cache(self):
        self._note("reset_prefix_cache")
        return True

    def sleep(self, level):
        self._note(f"sleep {level}")
        self.asleep = True

    def wake_up(self):
        self._note("wake_up")
        self.asleep = False


@pytest.fixture
def engine(monkeypatch):
    """An engine in the place of vLLM's."""
    names = {
        "vllm": {"SamplingParams": SimpleNamespace},
        "vllm.sampling_params": {"RequestOutputKind": SimpleNamespace(CUMULATIVE=0, FINAL_ONLY=1)},
    }
    for name, contents in names.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    made = Engine()
    made.engine_core = SimpleNamespace(shutdown=lambda: None)
    monkeypatch.setattr(vllm, "start", lambda *_: vllm_engine.Engine(made, [], in_memory=False))
    return made


@pytest.mark.parametrize("sleep", [True, False])
def test_it_sleeps_between_rollouts_and_wakes_for_weights_and_questions(sleep, engine, tiny_policy, tmp_path):
    files = PolicyFiles(tiny_policy)
    model, generator = files.load(), VLLMGenerator(directory=str(tmp_path), sleep=sleep)
    request = request_for([[3, 4]], [(0, 0), (0, 1)], Sampling(max_new_tokens=3), frozenset([1]))
    for version in (0, 0, 1):  # the second rollout has the weights of the first
        generator.update(model, files, version)
        assert generator.generate(model, request).response_ids.tolist() == [[1], [1]]
    generator.close()
    answered = ["add_request", "add_request", "step", "step"]
    wake, rest = (["wake_up"], ["sleep 1"]) if sleep else ([], [])
    again = ["reload_weights", "reset_prefix_cache"]
    assert engine.asked == [*answered, *rest, *wake, *answered, *rest, *wake, *again, *answered, *rest]


def test_it_does_not_sleep_on_a_cpu(tiny_policy, tmp_path):
    files = PolicyFiles(tiny_policy)
    with pytest.raises(UserError, match=r"generator\.sleep gives a GPU's memory back"):
        VLLMGenerator(directory=str(tmp_path), sleep=True).update(files.load(), files, 0)
