"""The client of a vLLM server, against one that speaks as a real one did; see `vllm_contract`."""

import json
import logging
import socket
import threading

import pytest
import torch

from rl_lightning.algorithms import GRPO, RFT, OptimizerOptions, SamplerCorrection
from rl_lightning.callbacks import RejectionSampling
from rl_lightning.data import ChainSum, RewardDataModule, RolloutDataModule
from rl_lightning.data.evaluation import Evaluation
from rl_lightning.errors import UserError
from rl_lightning.functional import logprobs_from_logits
from rl_lightning.generation import Sampling, VLLMServerGenerator, broadcast, transfer, vllm_server
from rl_lightning.generation.export import main as export
from rl_lightning.generation.snapshots import save_snapshot
from rl_lightning.hooks import RolloutCallback
from rl_lightning.models import LoraOptions, PolicyFiles, add_adapter, response_logits
from rl_lightning.rewards import RewardSpec
from rl_lightning.strategies import full_state_dict
from tests.checks import assert_same
from tests.support import request_for, trainer
from tests.unit.generation.fake_vllm import FakeVLLM

PROMPTS = [[3, 4, 5], [6, 7, 8, 9], [12]]
STREAMS = [(7, number) for number in range(12)]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    directory = tmp_path_factory.mktemp("served")
    export(["embedded", str(directory)])
    return directory


@pytest.fixture(scope="module")
def files():
    return PolicyFiles("embedded")


@pytest.fixture
def policy(files):
    return files.load(trainable=False)


def moved(policy, seed=1):
    """Change every weight, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return policy


def sample(generator, policy, files, pad_id=0, progress=None, **options):
    sampling = Sampling(**({"max_new_tokens": 10, "temperature": 1.3} | options))
    return generator.generate(policy, request_for(PROMPTS, STREAMS, sampling, files.stop_ids, pad_id=pad_id), progress)


def scored(policy, responses, temperature=1.3):
    """Return what the trainer's own pass says of the sampled tokens, 0 elsewhere."""
    with torch.no_grad():
        logits = response_logits(
            policy,
            torch.cat([responses.prompt_ids, responses.response_ids], 1),
            torch.cat([responses.prompt_mask, responses.response_mask], 1),
            responses.response_ids.shape[1],
        )
    logprobs = logprobs_from_logits(logits, responses.response_ids, temperature)
    return torch.where(responses.response_mask, logprobs, 0)


def started(fake, tmp_path, **options):
    return VLLMServerGenerator(fake.url, directory=str(tmp_path / "weights"), **options)


# ------------------------------------------------------------------------------------------------ responses


def test_responses_are_those_of_the_policy_and_so_are_their_log_probabilities(served, policy, files, tmp_path):
    with FakeVLLM(served) as fake:
        generator = started(fake, tmp_path)
        generator.update(policy, files, 0)
        for temperature in (1.3, 0.0):
            responses = sample(generator, policy, files, temperature=temperature)
            assert float((responses.logprobs - scored(policy, responses, temperature or 1.0)).abs().max()) < 1e-4
            assert responses.response_mask.any(1).all() and responses.logprobs.dtype == torch.float32
        cut = sample(generator, policy, files, max_new_tokens=3)
        last = cut.response_ids.gather(1, cut.response_mask.sum(1, keepdim=True) - 1)[:, 0]
        assert cut.truncated.tolist() == [int(token) not in files.stop_ids for token in last]
        assert int(cut.truncated.sum()) > 0
        for row, prompt in enumerate(prompt for prompt in PROMPTS for _ in range(4)):
            assert cut.prompt_ids[row][cut.prompt_mask[row]].tolist() == prompt


def test_a_stream_decides_a_response_whatever_is_beside_it(served, policy, files, tmp_path):
    with FakeVLLM(served) as fake:
        generator = started(fake, tmp_path)
        generator.update(policy, files, 0)
        whole = sample(generator, policy, files)
        part = generator.generate(policy, request_for(PROMPTS[1:2], STREAMS[4:8], Sampling(10, 1.3), files.stop_ids))
        width = part.response_ids.shape[1]
        assert torch.equal(part.response_ids, whole.response_ids[4:8, :width])
        assert len({tuple(row) for row in part.response_ids.tolist()}) > 1, "one seed for all"


def test_with_a_truncated_vocabulary_nobody_knows_the_log_probabilities(served, policy, files, tmp_path):
    with FakeVLLM(served) as fake:
        generator = started(fake, tmp_path)
        generator.update(policy, files, 0)
        for name, value in (("top_k", 3), ("top_p", 0.5)):
            responses = sample(generator, policy, files, **{name: value})
            assert responses.logprobs[responses.response_mask].isnan().all()
            assert responses.logprobs[~responses.response_mask].eq(0).all()
            assert fake.asked[-1][1][name] == value


def test_no_more_requests_than_wanted_are_under_way_and_progress_is_told(served, policy, files, tmp_path):
    for concurrency in (1, 5):
        with FakeVLLM(served, slow=0.02) as fake:
            generator = started(fake, tmp_path, concurrency=concurrency)
            generator.update(policy, files, 0)
            seen = []
            sample(generator, policy, files, progress=lambda *counts, seen=seen: seen.append(counts))
            # It is asked now and then as well, so that a run can be stopped while no response ends.
            assert list(dict.fromkeys([(0, 12), *seen])) == [(done, 12) for done in range(13)]
            assert (fake.most_at_a_time == 1) == (concurrency == 1) and fake.most_at_a_time <= concurrency


class Enough(Exception):
    pass


def test_who_stops_the_run_while_it_samples_waits_for_nobody(served, policy, files, tmp_path):
    def stop(done, total):
        raise Enough

    with FakeVLLM(served, slow=0.05) as fake:
        generator = started(fake, tmp_path, concurrency=1)
        generator.update(policy, files, 0)
        before = len(fake.asked)
        with pytest.raises(Enough):
            sample(generator, policy, files, progress=stop)
        assert len(fake.asked) - before < 5


# -------------------------------------------------------------------------------------------------- updates


def test_an_update_happens_when_the_version_is_another_and_only_then(served, policy, files, tmp_path):
    with FakeVLLM(served) as fake:
        generator = started(fake, tmp_path)
        generator.update(policy, files, 0)
        for version, agrees in ((0, False), (1, True)):
            moved(policy, version)
            generator.update(policy, files, version)
            responses = sample(generator, policy, files)
            gap = float((responses.logprobs - scored(policy, responses)).abs().max())
            assert (gap < 1e-4) == agrees, gap
        reloads = [body["kwargs"]["weights_path"] for path, body in fake.asked if path == "/collective_rpc"]
        assert len(reloads) == 2 and len(set(reloads)) == 2
        resets = [number for number, (path, _) in enumerate(fake.asked) if path == "/reset_prefix_cache"]
        assert len(resets) == 2, "keys and values of the old weights would be used again"
        assert [path.name for path in (tmp_path / "weights").glob("*/*")] == ["weights-2"]
        assert generator.metrics()["time/update_s"] > 0 and generator.metrics() == {}
        generator.close()
        assert not any((tmp_path / "weights").iterdir())
        generator.update(policy, files, 1)
        assert len(fake.asked) > resets[-1] + 1, "after close everything begins anew"


def test_the_server_is_told_whole_paths(served, policy, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with FakeVLLM(served) as fake:
        VLLMServerGenerator(fake.url, directory="weights").update(policy, files, 0)
        (path,) = [body["kwargs"]["weights_path"] for path, body in fake.asked if path == "/collective_rpc"]
    assert path.startswith(str(tmp_path.resolve()))


def test_an_update_that_failed_is_tried_again(served, policy, files, tmp_path):
    with FakeVLLM(served, busy=True) as fake:
        generator = started(fake, tmp_path)
        with pytest.raises(UserError, match=r"could not drop its cache of prompts .* one run at a time"):
            generator.update(policy, files, 0)
        fake.busy = False
        generator.update(policy, files, 0)
        assert [path for path, _ in fake.asked].count("/collective_rpc") == 2


def test_a_snapshot_has_a_head_of_its_own_and_the_adapter_in_its_weights(policy, files, tmp_path):
    pytest.importorskip("peft")
    adapted = moved(add_adapter(files.load(), LoraOptions(rank=2)))
    save_snapshot(adapted, full_state_dict(adapted), tmp_path / "adapted")
    config = json.loads((tmp_path / "adapted" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False and config["architectures"] == ["LlamaForCausalLM"]
    loaded = PolicyFiles(str(tmp_path / "adapted"))
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(loaded.policy).eval()
    assert plain.lm_head.weight.data_ptr() != plain.model.embed_tokens.weight.data_ptr()
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        assert_same(plain(ids).logits, adapted.eval()(ids).logits, relative=1e-5)
        assert float((plain(ids).logits - policy(ids).logits).abs().max()) > 0.1


# --------------------------------------------------------------------------------------------------- errors


def refused(fake, tmp_path, policy, files, **options):
    with pytest.raises(UserError) as error:
        generator = started(fake, tmp_path, **options)
        generator.update(policy, files, 0)
        sample(generator, policy, files)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_server_that_reports_other_log_probabilities_is_refused(served, policy, files, tmp_path):
    with FakeVLLM(served, logprobs_mode="raw_logprobs") as fake:
        said = refused(fake, tmp_path, policy, files)
    assert "reports raw_logprobs" in said and "--logprobs-mode processed_logprobs" in said


def test_a_server_without_its_development_mode_is_refused(served, policy, files, tmp_path):
    with FakeVLLM(served, development=False) as fake:
        said = refused(fake, tmp_path, policy, files)
    assert "answered 404" in said and "VLLM_SERVER_DEV_MODE=1" in said


@pytest.mark.parametrize(("size", "said"), [(20, "fewer than the 27 tokens"), (40, "more than the 27 tokens")])
def test_a_server_of_another_vocabulary_is_refused(size, said, served, policy, files, tmp_path):
    with FakeVLLM(served) as fake:
        fake.model.resize_token_embeddings(size)
        assert said in refused(fake, tmp_path, policy, files)


def test_a_server_that_does_not_find_the_weights_is_told_of(served, policy, files, tmp_path):
    with FakeVLLM(served) as fake:
        generator = started(fake, tmp_path)
        answer = fake.answer
        fake.answer = lambda method, path, body: answer(
            method, path, {**body, "kwargs": {"weights_path": "/elsewhere"}} if path == "/collective_rpc" else body
        )
        with pytest.raises(UserError, match=r"answered 500: Call to collective_rpc .*it could not load .*restart it"):
            generator.update(policy, files, 0)


def test_on_a_cpu_a_head_that_updates_would_not_reach_is_refused(served, policy, files, tmp_path):
    tied = tmp_path / "tied"
    policy.save_pretrained(tied)
    with FakeVLLM(tied) as fake:
        assert "rl_lightning.generation.export" in refused(fake, tmp_path, policy, files)
    with FakeVLLM(tied, device="cuda") as fake:
        started(fake, tmp_path).update(policy, files, 0)


def test_a_prompt_beyond_the_context_is_refused_by_name(served, policy, files, tmp_path):
    with FakeVLLM(served) as fake:
        generator = started(fake, tmp_path)
        generator.update(policy, files, 0)
        with pytest.raises(UserError, match="answered 400: max_tokens=1000 cannot be greater than max_model_len"):
            sample(generator, policy, files, max_new_tokens=1000)


def test_a_temperature_that_vllm_would_round_up_is_refused(served, policy, files, tmp_path):
    with FakeVLLM(served) as fake:
        generator = started(fake, tmp_path)
        generator.update(policy, files, 0)
        with pytest.raises(UserError, match=r"samples at 0\.01"):
            sample(generator, policy, files, temperature=0.005)


def unused_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_server_that_is_not_there(policy, files, tmp_path, monkeypatch):
    monkeypatch.setattr("rl_lightning.generation.connection._PATIENCE_S", 0.01)
    generator = VLLMServerGenerator(f"http://127.0.0.1:{unused_port()}", str(tmp_path), retries=2)
    with pytest.raises(UserError, match=r"cannot reach http://127.* is the server running"):
        generator.update(policy, files, 0)
    assert generator.metrics()["generator/retries"] == 2


def test_a_server_that_hangs(served, policy, files, tmp_path):
    with FakeVLLM(served, slow=1.0) as fake:
        assert "did not answer within 0.2 s" in refused(fake, tmp_path, policy, files, timeout_s=0.2)
        assert len(fake.asked) == 1, "what hangs is not asked again"


def test_something_else_than_a_server_of_vllm(policy, files, tmp_path):
    with socket.socket() as page:
        page.bind(("127.0.0.1", 0))
        page.listen()

        def serve():
            connection, _ = page.accept()
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\n<html>")
            connection.close()

        threading.Thread(target=serve, daemon=True).start()
        generator = VLLMServerGenerator(f"http://127.0.0.1:{page.getsockname()[1]}", str(tmp_path))
        with pytest.raises(UserError, match="does not answer in JSON"):
            generator.update(policy, files, 0)


def test_lost_connections_are_tried_again_and_counted(served, policy, files, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("rl_lightning.generation.connection._PATIENCE_S", 0.01)
    caplog.set_level(logging.WARNING)
    with FakeVLLM(served) as fake:
        generator = started(fake, tmp_path, retries=6)
        generator.update(policy, files, 0)
        undisturbed = sample(generator, policy, files)
        generator.metrics()
        fake.drop = 5
        disturbed = sample(generator, policy, files)
        assert torch.equal(undisturbed.response_ids, disturbed.response_ids)
        assert generator.metrics() == {"generator/retries": 5.0}
        assert "was lost 5 time(s)" in caplog.text
        sample(generator, policy, files)
        assert generator.metrics() == {}
        fake.drop = 1000
        assert "cannot reach" in refused(fake, tmp_path, policy, files, retries=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "localhost:8000"}, "http://"),
        ({"concurrency": 0}, "concurrency"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"retries": -1}, "retries"),
    ],
)
def test_impossible_settings_are_refused(options, said, tmp_path):
    with pytest.raises(UserError, match=said):
        VLLMServerGenerator(**({"directory": str(tmp_path)} | options))


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ({"token_ids": []}, "0 token ids"),
        ({"token_ids": [3, 3]}, "2 token ids and"),
        ({"token_ids": [3] * 11, "logprobs": {"token_logprobs": [-1.0] * 11}}, "11 tokens where at most 10"),
        ({"token_ids": [3, 1, 3], "logprobs": {"token_logprobs": [-1.0] * 3}}, "tokens after a stop token"),
        ({"token_ids": [3, 4, 3], "logprobs": {"token_logprobs": [-1.0] * 3}}, "ends after 3 of 10 tokens"),
    ],
)
def test_an_answer_that_was_not_asked_for_is_refused(faults, said, served, policy, files, tmp_path):
    with FakeVLLM(served, faults=faults) as fake:
        assert said in refused(fake, tmp_path, policy, files)


@pytest.mark.parametrize("said", [None, {"token_logprobs": None}, {"token_logprobs": [None, -0.5]}])
def test_log_probabilities_that_a_server_does_not_give_are_missing(said, served, policy, files, tmp_path):
    with FakeVLLM(served, faults={"token_ids": [3, 1], "logprobs": said}) as fake:
        generator = VLLMServerGenerator(fake.url, directory=str(tmp_path))
        generator.update(policy, files, 0)
        missing = sample(generator, policy, files).logprobs[:, :2].isnan()
    given = said is not None and said["token_logprobs"] is not None
    assert bool((missing == torch.tensor([True, not given])).all())


# ------------------------------------------------------------------------------------- weights over the network


class Wire:
    """Stands for NCCL between this process and a server."""

    def __init__(self, server):
        self.server = server

    def send(self, weight):
        self.server.sent.put(weight.clone())

    def wait(self):
        pass

    def close(self):
        self.closed = True


@pytest.fixture
def network(monkeypatch):
    """Address → server; a policy on a CPU is sent too, in small pieces."""
    servers = {}

    def connect(server, device):
        wire = broadcast_connect(server, device)
        return Wire(servers[server.url]) if wire is None else wire

    broadcast_connect = broadcast._connect
    monkeypatch.setattr(broadcast, "communicators", lambda: lambda host, port, size, device: None)
    monkeypatch.setattr(broadcast, "_connect", connect)
    monkeypatch.setattr(transfer, "_AT_A_TIME", 50_000)
    monkeypatch.setattr(vllm_server, "obstacle", lambda model: None)
    return servers


def follows(generator, policy, files):
    responses = sample(generator, policy, files)
    return float((responses.logprobs - scored(policy, responses)).abs().max()) < 1e-4


def test_weights_are_sent_to_every_server(network, served, policy, files):
    """Each is asked half of the questions; a server that was lost has new ones when it is back."""
    with FakeVLLM(served) as one, FakeVLLM(served) as other:
        network |= {one.url: one, other.url: other}
        generator = VLLMServerGenerator(one.url, urls=[other.url], retries=0)
        for version in (0, 1):
            moved(policy, version)
            assert not follows(generator, policy, files) if version else True
            generator.update(policy, files, version)
            assert follows(generator, policy, files)
        paths = [path for path, _ in one.asked]
        assert paths.count("/init_weight_transfer_engine") == 1
        assert paths.count("/start_weight_update") == paths.count("/finish_weight_update") == 2
        assert paths.count("/update_weights") > 4, "one piece an update"
        other.drop = 10**9
        assert follows(generator, policy, files)
        other.drop, other.connected = 0, False
        moved(policy, 2)
        generator.update(policy, files, 2)
        assert follows(generator, policy, files)
        assert other.connected and other.begun is False
        generator.close()


def test_a_server_that_takes_no_weights_is_told_of(network, served, policy, files):
    with FakeVLLM(served, takes_weights=False) as fake:
        network[fake.url] = fake
        with pytest.raises(UserError, match=r"Weight transfer not configured; .* --weight-transfer-config") as error:
            VLLMServerGenerator(fake.url).update(policy, files, 0)
        assert "\n" not in str(error.value)


def test_a_server_that_is_lost_while_weights_are_on_their_way_ends_the_run(network, served, policy, files):
    """NCCL would wait for it for ever."""
    with FakeVLLM(served) as fake:
        network[fake.url] = fake
        generator = VLLMServerGenerator(fake.url, retries=5)
        generator.update(policy, files, 0)
        stuck, wire = threading.Event(), generator._broadcast._channels[fake.url]
        take = fake.take_weights

        def lose(path, body):
            if path == "/update_weights":
                fake.drop = 10**9
                raise ConnectionError
            return take(path, body)

        fake.take_weights = lose
        wire.send = lambda weight: stuck.wait(60)
        with pytest.raises(
            UserError, match=r"cannot reach .* weights were on their way to the vLLM servers, which have lost theirs"
        ):
            generator.update(policy, files, 1)
        assert wire.closed, "a GPU that sends to nobody keeps the run from ending"
        stuck.set()


def test_an_update_that_an_earlier_run_was_stopped_in_is_ended_first(network, served, policy, files):
    with FakeVLLM(served) as fake:
        network[fake.url] = fake
        fake.begun = True
        generator = VLLMServerGenerator(fake.url)
        generator.update(moved(policy), files, 0)
        assert follows(generator, policy, files)


def test_a_group_that_cannot_be_founded_is_one_line(network, served, policy, files, monkeypatch):
    def refuse(*_):
        raise RuntimeError("NCCL error: invalid\nusage")

    monkeypatch.setattr(broadcast, "communicators", lambda: refuse)
    with FakeVLLM(served) as fake:
        network[fake.url] = fake
        with pytest.raises(
            UserError, match=r"no NCCL group with .* \(NCCL error: invalid usage\): it needs GPUs other"
        ) as error:
            VLLMServerGenerator(fake.url).update(policy, files, 0)
        assert "\n" not in str(error.value).partition("more:")[0].strip()


def test_a_policy_that_is_not_on_a_gpu_needs_a_directory(served, policy, files):
    with FakeVLLM(served) as fake, pytest.raises(UserError, match=r"the policy is not on a GPU; set .*directory"):
        VLLMServerGenerator(fake.url).update(policy, files, 0)


# ---------------------------------------------------------------------------------------------------- a run


class Watch(RolloutCallback):
    def __init__(self):
        self.gaps, self.metrics = [], []

    def on_rollout_end(self, trainer, module, rollout):
        difference = (rollout.rollout_logprobs - rollout.old_logprobs)[rollout.response_mask]
        self.gaps.append(float(difference.abs().max()))
        self.metrics.append(rollout.metrics)


class Stale(VLLMServerGenerator):
    """Never takes over new weights."""

    def update(self, model, files, version):
        super().update(model, files, 0)


@pytest.mark.parametrize("kind", [VLLMServerGenerator, Stale])
def test_grpo_learns_from_a_server_that_follows_the_policy(kind, served, tmp_path):
    """Three rollouts of two updates; in the second and third a copy that is not updated is off, and one that is agrees."""
    watch = Watch()
    with FakeVLLM(served) as fake:
        generator = kind(fake.url, directory=str(tmp_path / "weights"))
        data = RolloutDataModule(
            prompts=ChainSum(train_size=8, val_size=4), sampling=Sampling(max_new_tokens=12), seed=1, generator=generator,
            prompts_per_rollout=2, group_size=4, epochs_per_rollout=2,
            rewards=[RewardSpec("rl_lightning.rewards.functions.response_length")],
        )  # fmt: skip
        module = GRPO(kl_coef=0.0, optimizer=OptimizerOptions(lr=1e-3), sampler_correction=SamplerCorrection(cap=1.001))
        fit = trainer(tmp_path, [watch], max_epochs=3)
        fit.fit(module, datamodule=data)
        follows = kind is VLLMServerGenerator
        assert [gap < 1e-4 for gap in watch.gaps] == [True, follows, follows], watch.gaps
        assert (float(fit.callback_metrics["sampler/mismatch_kl"]) < 1e-8) == follows
        assert (float(fit.callback_metrics["sampler/truncated_fraction"]) == 0) == follows
        assert ("time/update_s" in watch.metrics[2]) == follows
        assert [path for path, _ in fake.asked].count("/collective_rpc") == (3 if follows else 1)
    assert not any((tmp_path / "weights").iterdir()), "what was handed over is removed at the end"


@pytest.mark.slow
def test_rejection_sampling_learns_from_samples_of_a_server(served, tmp_path):
    """A frozen policy is handed over once; validation afterwards is of the policy that has learned."""
    with FakeVLLM(served) as fake:
        data = RewardDataModule(
            prompts=ChainSum(train_size=4, val_size=2), sampling=Sampling(max_new_tokens=12), seed=1, batch_size=2,
            group_size=4, generator=VLLMServerGenerator(fake.url, directory=str(tmp_path / "weights")),
            rewards=[RewardSpec("rl_lightning.rewards.functions.response_length")], correct_threshold=4.0,
            evaluation=Evaluation(samples_per_prompt=2),
        )  # fmt: skip
        module = RFT(optimizer=OptimizerOptions(lr=1e-3))
        fit = trainer(tmp_path, [RejectionSampling()], online=False, max_epochs=2, limit_val_batches=1.0)
        fit.fit(module, datamodule=data)
        assert fit.global_step > 0 and "val/reward_mean" in fit.callback_metrics
        answered = [path for path, body in fake.asked if path == "/v1/completions" and "seed" in body]
        reloads = [path for path, _ in fake.asked].count("/collective_rpc")
    assert len(answered) == 4 * 4 + 2 * (2 * 2) and reloads == 3


# -------------------------------------------------------------------------------------------- environments


def test_episodes_are_played_with_a_server_and_every_turn_has_a_seed_of_its_own(served, tmp_path):
    """The whole conversation is the prompt of a later turn, token by token; a run that is repeated asks for the same."""

    def play(folder):
        with FakeVLLM(served) as fake:
            data = RolloutDataModule(
                prompts=ChainSum(train_size=8, val_size=4), environment={"function": "tests.games.chat", "stop": [";"]}, seed=1,
                sampling=Sampling(max_new_tokens=24, max_turns=4, max_turn_tokens=4), prompts_per_rollout=2, group_size=2,
                generator=started(fake, folder), reward_limits={"timeout_s": 20.0},
            )  # fmt: skip
            seen = []

            class Keep(RolloutCallback):
                def on_rollout_end(self, trainer, module, rollout):
                    seen.append(rollout)

            trainer(folder, [Keep()]).fit(GRPO(kl_coef=0.0), datamodule=data)
            asked = [body for path, body in fake.asked if path == "/v1/completions" and "seed" in body]
            return seen[0], asked

    rollout, asked = play(tmp_path / "once")
    again, repeated = play(tmp_path / "again")
    turns = rollout.turns
    assert int(turns.max()) == 4 and (rollout.response_attention & (turns == 0)).any()
    assert torch.equal(rollout.response_ids, again.response_ids) and torch.equal(rollout.rewards, again.rewards)
    assert sorted(body["seed"] for body in asked) == sorted(body["seed"] for body in repeated)
    assert len({body["seed"] for body in asked}) == len(asked) == int(turns.amax(1).sum())
    prompts = {tuple(body["prompt"]) for body in asked}
    for row in range(len(rollout)):
        before = rollout.input_ids[row, : -rollout.response_length][
            rollout.attention_mask[row, : -rollout.response_length]
        ].tolist()
        for turn in range(1, int(turns[row].max()) + 1):
            first = int((turns[row] == turn).nonzero()[0])
            assert (*before, *rollout.response_ids[row, :first].tolist()) in prompts
    # What the server reported is what the policy itself says of those tokens.
    assert float(rollout.metrics.get("sampler/ratio_mean", 1.0)) == pytest.approx(1.0, abs=1e-3)
    assert (rollout.rollout_logprobs[turns > 0] < 0).all() and not rollout.rollout_logprobs[turns == 0].any()


# ------------------------------------------------------------------------------------------------ several servers


def test_servers_share_requests_and_answer_for_one_that_is_lost(served, policy, files, tmp_path, caplog):
    def asked(fake, path, since):
        return sum(where == path for where, _ in fake.asked[since:])

    with FakeVLLM(served) as one, FakeVLLM(served) as other:
        alone = started(one, tmp_path)
        alone.update(policy, files, 0)
        expected = sample(alone, policy, files)
        several = started(one, tmp_path, urls=[other.url], retries=0)
        several.update(policy, files, 0)
        marks = [len(fake.asked) for fake in (one, other)]
        assert torch.equal(sample(several, policy, files).response_ids, expected.response_ids)
        assert [asked(*each) for each in zip((one, other), ["/v1/completions"] * 2, marks, strict=True)] == [6, 6]

        other.drop = 10**6
        assert torch.equal(sample(several, policy, files).response_ids, expected.response_ids)
        assert several.metrics()["generator/lost_servers"] == 1
        assert f"Going on without the vLLM server at {other.url}" in caplog.text

        moved(policy)
        several.update(policy, files, 1)  # it is still away
        other.drop = 0
        several.update(policy, files, 2)  # and back
        marks = [len(fake.asked) for fake in (one, other)]
        found = sample(several, policy, files)
        assert not torch.equal(found.response_ids, expected.response_ids)
        assert float((found.logprobs - scored(policy, found)).abs().max()) < 1e-4, "a server has the old weights"
        assert [asked(*each) for each in zip((one, other), ["/v1/completions"] * 2, marks, strict=True)] == [6, 6]

        one.drop = other.drop = 10**6
        with pytest.raises(UserError, match="cannot reach"):
            sample(several, policy, files)
