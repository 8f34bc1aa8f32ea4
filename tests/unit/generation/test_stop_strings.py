"""Responses that end on a text, from every generator."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from rl_lightning.data.evaluation import Evaluation
from rl_lightning.errors import UserError
from rl_lightning.generation import NativeGenerator, Sampling, TransformersGenerator, VLLMGenerator
from rl_lightning.generation.copies import Answer, Question
from rl_lightning.generation.vllm_engine import Engine as VLLMEngine
from rl_lightning.stopping import StopStrings
from tests.support import request_for
from tests.tiny import EOS, PAD
from tests.unit.generation.families import family
from tests.unit.generation.test_generators import PROMPTS, STREAMS, rows, same


class Letters:
    """Decodes a token to one letter."""

    def decode(self, ids, **_):
        return "".join(chr(ord("a") + token) for token in ids)


TOKENIZER = Letters()


def sample(generator, strings, name="llama", finished=None):
    asked = request_for(PROMPTS, STREAMS, Sampling(12, 1.3), frozenset({EOS}), strings, PAD)
    return generator.generate(family(name), asked, finished=finished)


def cut(response, strings, ends=len):
    """Return a response up to the token that completes a string, the slow way."""
    text = TOKENIZER.decode(response)
    places = [text.find(string) + ends(string) for string in strings if string in text]
    return response[: min(places)] if places else response


@pytest.mark.parametrize(("generator", "name"), [(NativeGenerator, "llama"), (TransformersGenerator, "gpt2")])
def test_a_string_ends_a_response_and_changes_nothing_before(generator, name):
    whole = rows(sample(generator(), None, name))
    # Two letters that some responses have, and some have not.
    pairs = [TOKENIZER.decode(row[at : at + 2]) for row in whole for at in (1, 3) if len(row) > at + 2]
    strings = (pairs[0], pairs[1])
    expected = [cut(row, strings) for row in whole]
    assert 0 < sum(a != b for a, b in zip(expected, whole, strict=True)) < len(whole)
    assert expected != [cut(row, strings, lambda string: len(string) - 1) for row in whole], "a mutant would pass"
    seen = {}
    found = sample(generator(max_rows=5), StopStrings(TOKENIZER, strings), name, finished=seen.__setitem__)
    assert rows(found) == expected
    stopped = [row[-1] == EOS or any(s in TOKENIZER.decode(row) for s in strings) for row in expected]
    assert found.truncated.tolist() == [not one for one in stopped] and len(set(stopped)) == 2
    if generator is NativeGenerator:
        assert seen == dict(enumerate(expected))
        same(found, sample(TransformersGenerator(), StopStrings(TOKENIZER, strings), name))


def test_an_engine_of_vllm_is_told_to_abort_what_a_string_has_ended(monkeypatch):
    """The engine has no tokenizer: answers come token by token, at times several of them."""
    package, params = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    package.SamplingParams = lambda **options: SimpleNamespace(**options)
    params.RequestOutputKind = SimpleNamespace(CUMULATIVE="cumulative", FINAL_ONLY="final")
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", params)
    scripts = {"0": [3, 4, 5, 6, 7], "1": [3, 9, 9, 9, 1]}

    class Engine:
        def __init__(self):
            self.at, self.aborted, self.kinds = {}, [], set()

        def add_request(self, name, prompt, params):
            self.at[name] = 0
            self.kinds.add(params.output_kind)

        def has_unfinished_requests(self):
            return bool(self.at)

        def abort_request(self, names):
            self.aborted += names
            for name in names:
                self.at.pop(name)

        def step(self):
            outputs = []
            for name in list(self.at):
                self.at[name] = min(self.at[name] + 3, 5)
                ids = scripts[name][: self.at[name]]
                logprobs = [{token: SimpleNamespace(logprob=-float(token))} for token in ids]
                done = len(ids) == 5
                if done:
                    self.at.pop(name)
                output = SimpleNamespace(token_ids=ids, logprobs=logprobs)
                outputs.append(SimpleNamespace(request_id=name, finished=done, outputs=[output]))
            return outputs

    generator = VLLMGenerator()
    engine = Engine()
    generator._engine = VLLMEngine(SimpleNamespace(llm_engine=engine), [], in_memory=False)
    strings = StopStrings(TOKENIZER, ("de",))
    asked = request_for([[1], [2]], [(0, 0), (0, 1)], Sampling(5), frozenset({1}), strings)
    found = generator.answers([Question([1], 0, 5), Question([2], 0, 5)], asked, None)
    assert found == [Answer([3, 4], [-3.0, -4.0]), Answer(scripts["1"], [-3.0, -9.0, -9.0, -9.0, -1.0])]
    assert engine.aborted == ["0"] and engine.kinds == {"cumulative"}
    generator._engine = None


def test_a_server_of_vllm_is_asked_for_the_strings_and_to_keep_them():
    from rl_lightning.generation import VLLMServerGenerator

    generator = VLLMServerGenerator(directory="/tmp/nowhere")
    asked = []

    def ask(method, path, body):
        asked.append(body)
        # Two tokens behind the one that completes the string, as a server that looks at several at a time would answer.
        return {"choices": [{"token_ids": [3, 4, 5, 6], "logprobs": {"token_logprobs": [-1.0, -2.0, -3.0, -4.0]}}]}

    (server,) = generator.servers
    server.ask = ask
    generator._models = {server: "served"}
    question, limits = [Question([1], 0, 9)], ([[1]], [(0, 0)], Sampling(9), frozenset({1}))
    (found,) = generator.answers(question, request_for(*limits, StopStrings(TOKENIZER, ("de",))), None)
    assert found == Answer([3, 4], [-1.0, -2.0])
    assert asked[0]["stop"] == ["de"] and asked[0]["include_stop_str_in_output"] is True
    generator.answers(question, request_for(*limits), None)
    assert "stop" not in asked[1]


def test_evaluation_ends_responses_as_training_does():
    training = Sampling(8, stop=["Q:"], stop_token_ids=[5])
    held_out = Evaluation(temperature=0.0, max_new_tokens=3).sampling(training)
    assert held_out == Sampling(3, 0.0, stop=["Q:"], stop_token_ids=[5])


@pytest.mark.parametrize(
    ("options", "said"), [({"stop": ["a", ""]}, "stop: an empty text"), ({"stop_token_ids": [-1]}, "stop_token_ids")]
)
def test_impossible_ends_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        Sampling(**options).check(training=True)
