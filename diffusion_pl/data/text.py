"""Text encoders of the `transformers` library: from texts to sequences of embeddings, NaN where there is no token."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


class TextEncoder:
    """A tokenizer and a text model, such as T5, CLIP's or BERT, frozen; needs the extra ``text``.

    Args:
        name: A folder that `save_pretrained` wrote, with model and tokenizer, or a name on the hub.
        tokens: Number of tokens of each text; longer ones are cut off.
        download: Fetch it from the hub if it is not in the library's cache.
    """

    def __init__(self, name: str, tokens: int, download: bool = False) -> None:
        if tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {tokens}")
        self.name, self.tokens, self.download = name, tokens, download

    @cached_property
    def width(self) -> int:
        """Length of an embedding."""
        config = self._read("AutoConfig")
        return int(config.get_text_config().hidden_size)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, which pads on the right."""
        tokenizer = self._read("AutoTokenizer")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"
        return tokenizer

    @cached_property
    def model(self) -> Any:
        """The text model in evaluation mode, float32.

        Raises:
            ValueError: weights of it are missing.
        """
        config = self._read("AutoConfig").get_text_config()
        import transformers

        # Of T5, encoder and decoder, and of CLIP, text and images, the text encoder alone.
        alone = type(config) in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING
        kind = "AutoModelForTextEncoding" if alone else "AutoModel"
        model, loaded = self._read(kind, config=config, output_loading_info=True)
        if missing := sorted(loaded["missing_keys"]):  # the library would draw them at random
            raise ValueError(
                f"text_encoder {self.name}: its weights lack {missing[0]} and {len(missing) - 1} others. Fix: give "
                "--data.text_encoder FOLDER of a whole text model"
            )
        return model.float().eval().requires_grad_(False)

    @cached_property
    def sha256(self) -> str:
        """Of the weights and the vocabulary, wherever they are from; hexadecimal."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        digest = hashlib.sha256(json.dumps(vocabulary).encode())
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of the tokens, the model's last hidden states: (len(texts), tokens, width), float32, NaN beyond
        the last token."""
        inputs = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.tokens, return_tensors="pt"
        )
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        states: Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return torch.where(mask[:, :, None] > 0, states, float("nan"))

    def _read(self, kind: str, **options: Any) -> Any:
        """What a class of `transformers` makes of the name.

        Raises:
            ValueError: the library is missing, or the encoder is neither a folder nor in the library's cache.
        """
        try:
            import transformers
        except ImportError:
            raise ValueError("text: needs the package transformers. Fix: pip install 'diffusion_pl[text]'") from None
        log: Any = transformers.utils.logging
        log.disable_progress_bar()  # that of reading a file; a download still shows its own
        verbosity = log.get_verbosity()
        log.set_verbosity_error()  # of CLIP it lists the weights of the images' part, which is not wanted
        try:
            factory = getattr(transformers, kind)
            return factory.from_pretrained(self.name, local_files_only=not self.download, **options)
        except Exception as error:  # the library raises its own, of many kinds
            reason = " ".join(str(error).split())[:120]
            raise ValueError(
                f"text_encoder {self.name}: no folder with a text model and its tokenizer, nor in the cache of "
                f"transformers ({reason}). Fix: give --data.text_encoder FOLDER"
            ) from None
        finally:
            log.set_verbosity(verbosity)
