"""Tiny models of the digits with conditions of every kind, trained for some steps by the command line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from images_model import digits_changes
from shell import cli, tiny_config
from torch import Tensor, nn

from diffusion_pl.conditions import Conditions


class TakesAll(nn.Module):
    """A convolution of x and the image condition, shifted by what a linear layer makes of all the others."""

    def __init__(self, shape: tuple[int, ...], conditions: Conditions) -> None:
        super().__init__()
        self.conditions = dict(conditions)
        images = [name for name, c in conditions.items() if c.kind == "image"]
        others = [c.shape for name, c in conditions.items() if name not in images]
        self.images = images
        self.conv = nn.Conv2d(shape[0] * (1 + len(images)), shape[0], 3, padding=1)
        self.line = nn.Linear(1 + sum((s or (1,))[-1] for s in others), shape[0])

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
        numbers = [c_noise[:, None] / 1000]
        for name, condition in self.conditions.items():
            if name not in self.images:
                value = cond[name].float()
                value = value[:, None] if condition.kind == "label" else value
                numbers.append(value.nanmean(1) if condition.kind == "sequence" else value)
        shift: Tensor = self.line(torch.cat(numbers, 1).nan_to_num())
        y: Tensor = self.conv(torch.cat([x, *(cond[name].nan_to_num() for name in self.images)], 1))
        return 0.1 * (y + shift[:, :, None, None])


def fit_conditional(folder: Path, run: str, options: dict[str, Any], **changes: Any) -> Path:
    """The checkpoint of a model of the digits; options: of `Digits`."""
    data = {"class_path": "Digits", "init_args": {"batch_size": 32, **options}}
    network = {"class_path": "conditional_model.TakesAll"}
    changed = digits_changes(False, data=data, model__network=network, **changes)
    done = cli(folder, "fit", "--config", tiny_config(folder, f"{run}.yaml", **changed), "--run", run)
    assert done.code == 0, done.err
    return Path("runs") / run / "checkpoints/last.ckpt"


def tiny_t5(folder: Path) -> Any:
    """A T5 of encoder and decoder, of 2 layers and 16 features, saved with a tokenizer of words; the model."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=16, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return _saved(transformers.T5ForConditionalGeneration(config), folder)


def tiny_clip(folder: Path) -> Any:
    """A CLIP of texts and images, of 2 layers and 16 features, saved with a tokenizer of words; the model."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**size, "vocab_size": 16, "max_position_embeddings": 12, "eos_token_id": 2}
    config = transformers.CLIPConfig(text_config=text, vision_config={**size, "image_size": 8, "patch_size": 4})
    return _saved(transformers.CLIPModel(config), folder)


def _saved(model: Any, folder: Path) -> Any:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({w: k for k, w in enumerate(WORDS.split())}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    make: Any = transformers.PreTrainedTokenizerFast  # which has no types
    make(tokenizer_object=words, **special).save_pretrained(folder)
    model.eval().save_pretrained(folder)
    return model


WORDS = "<pad> <unk> </s> a the red coat digit"


def tiny_encoder(folder: Path, seed: int = 0) -> str:
    """A BERT of 2 layers and 16 features with a vocabulary of words, saved as `transformers` saves it."""
    transformers = pytest.importorskip("transformers")
    words = "[PAD] [UNK] [CLS] [SEP] a the digit zero one two three four five six seven eight nine coat red"
    (folder / "vocab.txt").write_text("\n".join([*words.split(), *"0123456789"]), encoding="utf-8")
    transformers.BertTokenizerFast(vocab={w: k for k, w in enumerate([*words.split(), *"0123456789"])}).save_pretrained(
        folder
    )
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(folder)
    return str(folder)
