"""The stages of the study for one seed; each leaves its result on disk and is not done twice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from examples.overoptimization.monitors import Signals, signals
from examples.overoptimization.proxies import accuracy, scores, train
from examples.overoptimization.runs import Judged, Step, train_run
from examples.overoptimization.samples import Answers, pairs_of, problems, sample
from examples.overoptimization.settings import FUNCTIONS, Proxy, Run, Study
from examples.overoptimization.store import kept, key_of
from rl_lightning.audit import Answers as Audited
from rl_lightning.audit import judge
from rl_lightning.data.sources.base import Example
from rl_lightning.functional.ensemble import combine

#: Random small pools on which every reward is audited, and their problems and answers to each.
_AUDITS, _AUDITED = 40, 32


@dataclass(frozen=True)
class Bench:
    """Everything of one seed.

    Args:
        study: what is trained.
        seed: of problems, samples and weights.
        directory: of all seeds.
    """

    study: Study
    seed: int
    directory: Path

    @property
    def place(self) -> Path:
        """Where files of this seed lie."""
        return self.directory / f"seed-{self.seed}-{key_of(self.study.sizes)}"

    def path(self, stage: str, name: str = "", *parts: object) -> Path:
        """Return the file of a stage's result."""
        own = f"-{key_of(*parts)}" if parts else ""
        return self.place / stage / f"{_file_name(name) or stage}{own}.pt"

    @cached_property
    def _problems(self) -> dict[str, list[Example]]:
        return problems(self.study.sizes, self.seed)

    def _sampled(self, what: str, count: int) -> Answers:
        def make() -> Answers:
            return sample(self._problems[what], count, self.seed, self.study.sizes, self.place / "sampling" / what)

        return kept(self.path("sampled", what), make)

    def pool(self, _: str = "") -> Answers:
        """Return the answers that best of n takes from."""
        return self._sampled("pool", self.study.sizes.pool_answers)

    def pairs(self, _: str = "") -> list[Example]:
        """Return all pairs; the last of them are held out."""
        return pairs_of(self._sampled("pairs", 2))

    def start(self, _: str = "") -> dict[str, float]:
        """Return for each problem of the runs the mean gold reward of the start policy."""
        answers = self._sampled("runs", self.study.sizes.start_answers)
        prompts = [str(one.prompt) for one in answers.examples]
        return dict(zip(prompts, answers.gold.mean(1).tolist(), strict=True))

    def pairs_for(self, proxy: Proxy) -> list[Example]:
        """Return the pairs that a proxy learns from; those of another number are others."""
        usable = self.pairs()[: -self.study.sizes.held_out]
        first = proxy.number * proxy.pairs
        chosen = usable[first : first + proxy.pairs]
        if len(chosen) < proxy.pairs:
            raise SystemExit(f"{proxy.name} wants pairs {first} to {first + proxy.pairs}, and there are {len(usable)}")
        return chosen

    def proxy(self, name: str) -> Judged:
        """Return a trained proxy with its scores of the pool."""

        def make() -> Judged:
            proxy = Proxy(name)
            where = train(proxy, self.pairs_for(proxy), self.seed, self.place / "proxies" / name)
            pool = self.pool()
            table = scores(where, pool.rows()).view(pool.gold.shape)
            held_out = accuracy(where, self.pairs()[-self.study.sizes.held_out :])
            return Judged(where, float(table.mean()), float(table.std()), held_out, table)

        return kept(self.path("proxy", name), make)

    def run(self, name: str) -> list[Step]:
        """Return the rollouts of a run."""
        run = self.named(name)

        def make() -> list[Step]:
            judged = {one: self.proxy(one) for one in run.rewards if one not in FUNCTIONS}
            pairs = self.pairs_for(Proxy(run.rewards[0])) if run.rounds > 1 else []
            place = self.place / "runs" / _file_name(name)
            return train_run(run, self.study.sizes, judged, pairs, self._problems["runs"], self.seed, place)

        return kept(self.path("run", name, run), make)

    def signals(self, name: str) -> Signals:
        """Return what monitors see of a run; the ensemble is of proxies that it was not trained on, if there are two."""
        run = self.named(name)

        def make() -> Signals:
            watchers = self.study.watchers
            others = [one for one in watchers if one not in run.rewards]
            members = [self.proxy(one) for one in (others if len(others) > 1 else watchers)]
            return signals(self.run(name), members, self.study.sizes.group)

        return kept(self.path("signals", name, run, self.study.watchers), make)

    def audits(self, _: str = "") -> dict[str, float]:
        """Return for each reward the share of small audits, by correctness, that alarm."""

        def make() -> dict[str, float]:
            pool = self.pool()
            found = self.rewards() | {name: pool.by(name) for name in FUNCTIONS}
            lengths = torch.tensor([len(text) for text in pool.texts]).view(pool.gold.shape)
            draws = torch.Generator().manual_seed(self.seed)
            alarms = dict.fromkeys(found, 0)
            for _ in range(_AUDITS):
                rows = torch.randperm(len(lengths), generator=draws)[:_AUDITED]
                columns = torch.randperm(pool.count, generator=draws)[:_AUDITED]
                small = {name: table[rows][:, columns] for name, table in found.items()}
                for verdict in judge(Audited(small, lengths[rows][:, columns]), "right"):
                    alarms[verdict.reward] += verdict.alarm
            return {name: count / _AUDITS for name, count in alarms.items()}

        return kept(self.path("audits", "", self.study.proxies, self.study.runs), make)

    def rewards(self) -> dict[str, Tensor]:
        """Return what every proxy, every ensemble that is trained on, the gold reward and correctness say of the pool."""
        pool = self.pool()
        found = {name: self.proxy(name).scores for name in self.study.proxies}
        for run in self.study.runs:
            if len(run.rewards) > 1:
                members = [self.proxy(name) for name in run.rewards]
                table = torch.stack([(one.scores - one.mean) / one.deviation for one in members])
                found[run.name] = combine(table, run.how, run.coef)
        return found | {"right": pool.right, "gold": pool.gold}

    def named(self, name: str) -> Run:
        """Return a run by its name."""
        return next(run for run in self.study.runs if run.name == name)

    def done(self) -> Bench:
        """Return a bench of the proxies and runs whose results are there."""
        proxies = tuple(name for name in self.study.proxies if self.path("proxy", name).exists())
        runs = tuple(run for run in self.study.runs if self.path("run", run.name, run).exists())
        return replace(self, study=replace(self.study, proxies=proxies, runs=runs))

    def waves(self) -> list[list[tuple[str, str]]]:
        """Return all stages as (method, name), in waves; those of one wave may be done side by side."""
        runs = [run.name for run in self.study.runs]
        return [
            [("pool", ""), ("start", ""), ("pairs", "")],
            [("proxy", name) for name in sorted(self.study.proxies, key=lambda name: -Proxy(name).pairs)],
            [("run", name) for name in runs] + [("audits", "")],
            [("signals", name) for name in runs],
        ]


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in name)


def work(bench: Bench, stage: str, name: str) -> None:
    """Do a stage."""
    getattr(bench, stage)(name)
