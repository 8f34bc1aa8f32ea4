"""Memory that a run needs on one device, computed from the shapes of its models without loading one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from rl_lightning.models.head import LOGITS_AT_ONCE, logits_within
from rl_lightning.models.memory import Held, Moments, adamw_bytes
from rl_lightning.models.quantized import Bits

Precision = Literal["32-true", "bf16-mixed", "bf16-true"]
Size = tuple[int, ...]

#: Algorithm → the models that it trains, and the frozen models beside them.
MODELS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "SFT": (("policy",), ()),
    "RFT": (("policy",), ()),
    "DPO": (("policy",), ()),  # the reference scores all responses before training and is then dropped
    "PPO": (("policy", "critic"), ("reference",)),
    "GRPO": (("policy",), ("reference",)),
    "DAPO": (("policy",), ()),
    "RewardModel": (("scorer",), ()),
}
#: Algorithms that sample during training, while the optimizer holds its moments.
ONLINE = ("PPO", "GRPO", "DAPO")


@dataclass(frozen=True)
class Shape:
    """Shape of a Llama-like decoder: RMS norms, rotary positions, grouped queries, a gated feed-forward layer.

    Args:
        layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary: as in a model's `config.json`.
        tied: the language-model head is the embedding.
        qkv_bias: queries, keys and values have a bias, as in Qwen2.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = False
    qkv_bias: bool = False

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Return the shape in a configuration of transformers; in one of several models, that of the text model."""
        config = config.get_text_config()
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            vocabulary=config.vocab_size,
            tied=config.tie_word_embeddings,
            qkv_bias=config.model_type == "qwen2",
        )

    def linears(self) -> list[Size]:
        """Return the weight sizes (out, in) of the linear layers of one decoder layer: q, k, v, o, gate, up, down."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention: list[Size] = [(queries, self.hidden), *[(keys, self.hidden)] * 2, (self.hidden, queries)]
        return [*attention, *[(self.intermediate, self.hidden)] * 2, (self.hidden, self.intermediate)]

    def layer(self) -> list[Size]:
        """Return the sizes of all parameters of one decoder layer, biases and norms included."""
        biases: list[Size] = [(out,) for out, _ in self.linears()[:3]] if self.qkv_bias else []
        return [*self.linears(), *biases, (self.hidden,), (self.hidden,)]

    def ends(self, kind: str) -> list[Size]:
        """Return the sizes of the parameters outside the decoder layers: embedding, last norm and head.

        Args:
            kind: `policy`, `reference`, `critic` or `scorer`.
        """
        embedding, norm = (self.vocabulary, self.hidden), (self.hidden,)
        if kind == "critic":
            return [embedding, norm, (1, self.hidden), (1,)]
        if kind == "scorer":
            return [embedding, norm, (1, self.hidden)]
        return [embedding, norm] if self.tied else [embedding, norm, embedding]

    def sizes(self, kind: str = "policy") -> list[Size]:
        """Return the sizes of all parameters of a model of this shape."""
        return self.layer() * self.layers + self.ends(kind)

    def adapter(self, rank: int) -> list[Size]:
        """Return the sizes of the A and B of a LoRA adapter on every linear layer but the head."""
        pairs: list[list[Size]] = [[(rank, into), (out, rank)] for out, into in self.linears()]
        return [size for pair in pairs for size in pair] * self.layers


def numbers(sizes: list[Size], ranks: int = 1) -> int:
    """Return how many numbers tensors hold; on several ranks, those of the first, as tensors are cut along the first dimension."""
    return sum(-(-size[0] // ranks) * math.prod(size[1:]) for size in sizes)


def quantized_bytes(size: Size, bits: Bits) -> int:
    """Return the bytes of a quantised weight with its scales, as bitsandbytes keeps them.

    In 8 bits there is a float32 scale for each output. In 4 bits there is one for each 64 numbers, itself in 8 bits with a float32 scale for
    each 256 of them, and an offset; and two tables, of 16 and 256 levels.
    """
    count = math.prod(size)
    if bits == "8bit":
        return count + 4 * size[0]
    blocks = -(-count // 64)
    return -(-count // 2) + blocks + 4 * -(-blocks // 256) + 4 * (16 + 256 + 1)


@dataclass(frozen=True)
class Plan:
    """Settings of a run that decide its memory.

    Args:
        shape: of the policy and of every other model.
        algorithm: a key of `MODELS`.
        gpus: number of devices, all data-parallel.
        sharded: FSDP2 (parameters gathered in bfloat16 unless the precision is 32-true); DDP if False.
        precision: of the trainer. Weights are bfloat16 under bf16-true, and with LoRA under bf16-mixed too; otherwise float32.
        lora: rank of the adapter; all weights are trained if None.
        checkpointing: recompute activations in the backward pass.
        offload: what is kept to recompute them from, the inputs of the layers, waits on the host, but for two layers.
        rows: responses in one forward pass of one device; a pair has two.
        sampled: responses that one device samples at the same time.
        prompt, response: tokens of each.
        blocks: sampling multiplies by a copy of the weights in blocks, as on a CPU in float32.
        quantize: bits of the frozen linear layers beside an adapter; as many as the other weights if None.
        moments: what AdamW's are kept in.
        memory: bytes of each GPU in all, from which it follows how many logits are held at a time; None on a CPU.
    """

    shape: Shape
    algorithm: str = "GRPO"
    gpus: int = 1
    sharded: bool = False
    precision: Precision = "bf16-mixed"
    lora: int | None = None
    checkpointing: bool = True
    offload: bool = False
    rows: int = 1
    sampled: int = 64
    prompt: int = 512
    response: int = 1536
    blocks: bool = False
    quantize: Bits | None = None
    moments: Moments = "full"
    memory: float | None = None

    @property
    def compute(self) -> int:
        """Bytes per number in matrix products."""
        return 4 if self.precision == "32-true" else 2

    @property
    def stored(self) -> int:
        """Bytes per number of the weights in memory."""
        return 2 if self.precision == "bf16-true" or (self.lora and self.precision == "bf16-mixed") else 4

    @property
    def ranks(self) -> int:
        """Number of devices over which a model is cut up; 1 if every device holds it whole."""
        return self.gpus if self.sharded else 1

    # ------------------------------------------------------------- from step to step

    def held(self) -> list[Held]:
        """Return the memory of every model on one device, as `rl_lightning.models.memory.held` counts it in a run."""
        trained, frozen = MODELS[self.algorithm]
        # With an adapter the reference is the policy without it.
        frozen = () if self.lora else frozen
        return [self._trained(name) for name in trained] + [self._frozen(name) for name in frozen]

    def _trained(self, name: str) -> Held:
        sizes = self.shape.sizes(name)
        if self.lora is None:
            return self._model(name, sizes, sizes, numbers(sizes, self.ranks) * self.stored, self.stored)
        # An adapter, and the head of a critic or a classifier, are float32 beside weights of any precision.
        heads = [size for size in self.shape.ends(name) if size[0] == 1]
        trained = self.shape.adapter(self.lora) + heads
        base = [size for size in sizes if size[0] != 1]
        weights = self._base(base) + numbers(trained, self.ranks) * 4
        return self._model(name, base + trained, trained, weights, 4)

    def _base(self, sizes: list[Size]) -> int:
        """Return the bytes of frozen weights beside an adapter."""
        if self.quantize is None:
            return numbers(sizes, self.ranks) * self.stored
        linear = self.shape.linears() * self.shape.layers
        return (numbers(sizes) - numbers(linear)) * self.stored + sum(quantized_bytes(s, self.quantize) for s in linear)

    def _model(self, name: str, sizes: list[Size], trained: list[Size], weights: int, each: int) -> Held:
        gradients = numbers(trained, self.ranks) * each
        return Held(
            name,
            parameters=numbers(sizes),
            trained=numbers(trained),
            weights=weights,
            gradients=gradients,
            optimizer=sum(adamw_bytes(numbers([size], self.ranks), each, self.moments) for size in trained),
        )

    def _frozen(self, name: str) -> Held:
        sizes = self.shape.sizes(name)
        return Held(name, numbers(sizes), 0, numbers(sizes, self.ranks) * self.stored, 0, 0)

    # ---------------------------------------------------------------- for some time

    @property
    def gathered(self) -> int:
        """Bytes per number of parameters that FSDP2 has gathered."""
        return min(self.stored, self.compute)

    def passing(self) -> dict[str, int]:
        """Return the further memory of a forward and backward pass: name → bytes.

        DDP: copies of the weights in the precision of the products, which autocast keeps to the end of the pass, and the buckets
        in which gradients are summed. FSDP2: the gathered parameters and gradients of two layers (the one in use and the next)
        and of embedding and head.
        """
        trained = MODELS[self.algorithm][0]
        sizes = [size for name in trained for size in self.shape.sizes(name)]
        needs: dict[str, int] = {}
        if self.sharded:
            units = numbers(self.shape.layer()) * 2 + numbers(self.shape.ends(trained[0]))
            needs["gathered"] = units * self.gathered
            if self.lora is None:
                # Once in the precision of the products, and once in float32 while they are reduced over ranks.
                needs["gradients"] = units * (self.gathered + 4)
        else:
            if self.stored > self.compute:
                # Kept for the backward pass, or made once more in it, layer by layer.
                layers = [*self.shape.layer(), *self.shape.ends(trained[0])] if self.checkpointing else sizes
                needs["casts"] = numbers(layers) * self.compute
            if self.gpus > 1:
                needs["buckets"] = sum(model.gradients for model in self.held())
        return needs | self._whole_layer() | {"activations": self.activations(), "logits": self.logits()}

    def _whole_layer(self) -> dict[str, int]:
        """Return the memory of the one quantised weight that is made whole at a time, to be multiplied by."""
        if self.quantize is None:
            return {}
        return {"made whole": max(numbers([size]) for size in self.shape.linears()) * self.compute}

    def activations(self) -> int:
        """Return the bytes that layers keep for the backward pass of `rows` sequences; with PPO, those of both models.

        Per token, a layer keeps: of each of two norms its input, the normalised input and the output; queries, keys and values
        (keys and values repeated to the number of query heads), and the attention output twice; the gate, its activation, up,
        and their product. An adapter keeps r numbers in float32 for each linear layer.
        """
        shape, a = self.shape, self.compute
        residual = 2 if self.precision == "bf16-true" else 4
        # Norms compute in float32 in every precision; autocast casts their output once for each linear layer.
        norms = shape.hidden * {"32-true": 24, "bf16-mixed": 26, "bf16-true": 16}[self.precision]
        attention = 5 * shape.heads * shape.head_dim * a
        layer = norms + attention + 4 * shape.intermediate * a
        if self.lora:
            layer += sum(self.lora * 4 for _ in shape.linears())
        tokens = self.rows * (self.prompt + self.response)
        kept = (2 if self.offload else shape.layers) * (shape.hidden * residual if self.checkpointing else layer)
        # The layer that the backward pass is at: its gradients take a third of its activations, which checkpointing recomputes.
        kept += layer * 4 // 3 if self.checkpointing else layer // 3
        return tokens * kept * len(MODELS[self.algorithm][0])

    def logits(self) -> int:
        """Return the bytes of the language-model head's chunks.

        A chunk of logits in float32, one more float32 tensor of its size for probabilities or gradients, and the head's weight
        gradient, which is summed over chunks in float32.
        """
        if self.algorithm == "RewardModel":
            return 0
        shape, half = self.shape, self.compute < 4
        at_once = LOGITS_AT_ONCE if self.memory is None else logits_within(self.memory)
        positions = min(self.rows * self.response, max(1, at_once // shape.vocabulary))
        # In half precision, the logits and their gradient are kept in that precision too.
        chunk = positions * shape.vocabulary * (2 * 4 + (2 * self.compute if half else 0))
        return chunk + (4 * shape.vocabulary * shape.hidden if half and self.lora is None else 0)

    def stepping(self) -> dict[str, int]:
        """Return the further memory of AdamW's step: one more tensor per parameter if it is not fused, as in mixed precision. bitsandbytes
        takes its steps in place."""
        trained = sum(model.gradients for model in self.held())
        return {"step": trained if self.precision == "bf16-mixed" and self.moments == "full" else 0}

    def sampling(self) -> dict[str, int]:
        """Return the further memory of sampling: name → bytes. Every device holds the whole policy."""
        shape = self.shape
        whole = numbers(shape.sizes())
        token = 2 * shape.layers * shape.kv_heads * shape.head_dim * self.compute
        needs = {
            "cache": self.sampled * (self.prompt + self.response) * token,
            # For one column: as computed, and in float32 the logits, the logits / τ, probabilities, and blocks of them.
            "logits": self.sampled * shape.vocabulary * (self.compute + 4 * 4),
        }
        if self.sharded:
            needs["gathered"] = whole * self.gathered
        elif self.stored > self.compute:
            needs["casts"] = whole * self.compute
        needs |= self._whole_layer()
        if self.blocks:
            multiplied = [*shape.linears() * shape.layers, (shape.vocabulary, shape.hidden)]
            needs["blocks"] = numbers(multiplied) * self.compute
        return needs

    def phases(self) -> dict[str, int]:
        """Return the bytes in use on a device in each phase of a run: `pass`, `step` and, online, `sampling`."""
        held = sum(model.total for model in self.held())
        phases = {"pass": held + sum(self.passing().values()), "step": held + sum(self.stepping().values())}
        if self.algorithm in ONLINE:
            phases["sampling"] = held + sum(self.sampling().values())
        return phases

    def peak(self) -> int:
        """Return the largest number of bytes in use on a device, over all phases."""
        return max(self.phases().values())

    def most_rows(self, capacity: int, largest: int = 256) -> int:
        """Return the largest number of rows per forward pass, a power of two, that fits into some bytes; 0 if none does.

        Args:
            capacity: bytes of a device.
            largest: do not try more rows than this.
        """
        least = 2 if self.algorithm in ("DPO", "RewardModel") else 1
        fitting = 0
        rows = least
        while rows <= largest and replace(self, rows=rows).peak() <= capacity:
            fitting, rows = rows, 2 * rows
        return fitting
