"""Models with an adapter, some way from where it began."""

import torch

from rl_lightning.models import LoadOptions, LoraOptions, PolicyFiles, add_adapter
from tests.tiny import tiny_tokenizer
from tests.unit.generation.families import gpt2

IDS = torch.randint(3, 18, (3, 9), generator=torch.Generator().manual_seed(1))


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def moved(model, std=0.2):
    """Give every B of a model's adapter, which begin at 0, random numbers."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=std, generator=generator)
    return model


def adapted(policy, dtype="float32", **options):
    return add_adapter(PolicyFiles(policy, LoadOptions(dtype)).load(), LoraOptions(**{"rank": 4} | options))


def save_gpt2(directory):
    """Save a model that keeps its weights the other way round, and shares those of its embeddings with its head."""
    gpt2().save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return str(directory)
