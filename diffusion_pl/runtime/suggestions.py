"""The name or option that is meant by one that does not exist."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .vocabulary import elements

#: Our options, and names that other programs use for them; the first option that the command has is suggested.
_SYNONYMS = {
    "ckpt_path": "checkpoint ckpt checkpoint_path model model_path resume resume_from weights_path pretrained load",
    "trainer.max_epochs": "epochs num_epochs max_epoch",
    "trainer.max_steps": "max_steps steps iterations iters num_steps n_steps train_steps num_iterations",
    "trainer.devices": "gpus num_gpus ngpu n_gpus",
    "devices": "gpus num_gpus ngpu n_gpus",
    "trainer.accelerator": "device gpu cuda cpu",
    "accelerator": "device gpu cuda cpu",
    "seed_everything": "seed random_seed",
    "seed": "seed_everything random_seed",
    "run": "name run_name experiment exp",
    "model.optimizer.lr": "lr learning_rate",
    "num_samples": "n num count samples number n_samples",
    "output": "out o outdir out_dir output_dir save_dir dir",
    "cond.label": "label class class_label",
    "data": "dataset",
    "data.batch_size": "batch_size bs batch train_batch_size",
    "data.path": "data_dir data_path dataset_path",
    "scale": "cfg guidance guidance_scale w cfg_scale",
    "config": "cfg conf config_file yaml c",
    "steps": "num_steps num_inference_steps n_steps sampling_steps",
    "trainer.precision": "precision fp16 bf16 amp mixed_precision",
    "trainer.logger": "logger wandb",
    "trainer.accumulate_grad_batches": "gradient_accumulation_steps grad_accum accumulate",
    "trainer.gradient_clip_val": "max_grad_norm clip grad_clip clip_grad",
    "data.workers": "num_workers",
    "sampler": "scheduler solver",
    "ema.decays": "ema ema_decay",
    "metrics": "fid",
    "to": "format target",
    "samplers": "sampler",
}
#: Options of fit that no other command has, and options of sample.
_OF_FIT = ("trainer.", "model.", "data.", "run", "ema.")
_OF_SAMPLE = ("film", "npz", "num_samples", "scale", "latents", "steps", "output", "cond")

Children = Callable[[Sequence[str]], Iterable[str]]


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The most similar name; the case of letters and the signs between them do not count."""
    known = {_plain(n): n for n in sorted(names, reverse=True)}
    plain_name = _plain(name)
    if not plain_name:
        return None
    if plain_name in known:
        return known[plain_name]
    # 0.6 suggests maxsteps for max_step, not band for wandb: what begins alike comes before what is spelled alike.
    if len(plain_name) > 2 and (begins := [n for n in known if n.startswith(plain_name)]):
        return known[min(begins, key=len)]
    close = difflib.get_close_matches(plain_name, known, n=1, cutoff=0.65)
    return known[close[0]] if close else None


def nearest_child(parts: Sequence[str], name: str, children: Iterable[str]) -> str | None:
    """The name below a key that is meant: by what other programs call it, or the most similar one."""
    known = list(children)
    if same := next((child for child in known if _plain(child) == _plain(name)), None):
        return same
    meant = synonym(name, [".".join((*parts, child)) for child in known])
    meant = meant.rpartition(".")[2] if meant else None
    return meant if meant in known else nearest(name, known)


def did_you_mean(near: str | None) -> str:
    """The end of a message; "" if nothing is near."""
    return f"; did you mean {near}?" if near else ""


def option_meant(key: str, types: Mapping[str, Any], children: Children) -> str:
    """The end of a message about an option that does not exist: the one that is meant, or "".

    Args:
        key: the option without its dashes.
        types: the options of the command.
        children: the names that may follow a dotted key.
    """
    parts = [part for part in key.split(".") if part != "init_args"]
    odd = next((n for n, part in enumerate(parts) if part not in children(parts[:n])), len(parts) - 1)
    near = None
    if odd:
        part = nearest_child(parts[:odd], parts[odd], children(parts[:odd]))
        near = None if part is None else ".".join([*parts[:odd], part, *parts[odd + 1 :]])
    near = near or _by_last_name(parts, types, children)
    if near:
        return did_you_mean(f"--{near}")
    is_fit = "trainer.max_steps" in types
    others = _OF_SAMPLE if is_fit else [option for option in _SYNONYMS if option.startswith(_OF_FIT)]
    elsewhere = parts[-1] if parts[-1] in others else synonym(parts[-1], others)
    return f"; it is an option of {'sample' if is_fit else 'fit'}: --{elsewhere}" if elsewhere else ""


def _by_last_name(parts: Sequence[str], types: Mapping[str, Any], children: Children) -> str | None:
    """The option that is meant by a name without its section: lr, max_steps, checkpoint."""
    name, is_fit = parts[-1], "trainer.max_steps" in types
    single = [key for key, kind in types.items() if elements(kind) is None]  # those of callbacks belong to one of many
    known = [*types, *(f"{key}.{child}" for key in single for child in children(key.split(".")))]
    if len(parts) == 1:
        own = next((key for key in types if "." not in key and _plain(key) == _plain(name)), None)
        if own := own or synonym(name, known):
            return own
        if not is_fit and synonym(name, [option for option in _SYNONYMS if option.startswith(_OF_FIT)]):
            return None  # of fit, rather than of one of many samplers
    if same := [key for key in known if _plain(key.rpartition(".")[2]) == _plain(name)]:
        order = ("", "trainer", "model", "data")
        return min(same, key=lambda k: (k.count("."), order.index(k.split(".")[0]) if k.split(".")[0] in order else 4))
    if is_fit and name in _OF_SAMPLE:
        return None
    top = [key for key in types if key.count(".") <= (len(parts) > 1)]
    return nearest(".".join(parts), top) or nearest(name, [k for k in types if k.count(".") == 1 and len(name) > 4])


def synonym(name: str, known: Sequence[str]) -> str | None:
    """The first known option that another program calls so; one of a class, where the class is an option."""
    plain_name = name.lower().replace("-", "_")
    for option, names in _SYNONYMS.items():
        section = option.partition(".")[0]
        if plain_name in names.split() and (option in known or (section in known and section in ("cond", "data"))):
            return option
    return None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("+", "p"))
