"""CLIP, SigLIP and their like, of the transformers library, as classifiers whose classes are texts.

Names, revisions and what must be insisted on by name are those of ``hf/…``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from camlucida.files import printable
from camlucida.models import Model, hub
from camlucida.models.hf_source import preprocess, transformers
from camlucida.models.weights import fit, open_weights
from camlucida.models.zero_shot import check_prompts, said, too_long, zero_shot

FORM = "clip/NAME_OR_DIRECTORY"
PROMPTS = True


def build(name: str, weights: str | None, partial: bool, prompts: Sequence[str]) -> Model:
    """The two-tower model of this name or directory as a classifier by ``prompts``, which are its labels.

    Raises: ModelError where there is no such model, it has no two towers, or no prompts are given.

    >>> build("openai/clip-vit-base-patch32", None, False, ())
    Traceback (most recent call last):
        ...
    camlucida.errors.ModelError: the classes of a model with a tower for texts are texts: say load(…, \
prompts=['a photo of a dog', 'a photo of a cat']), or --prompt 'a dog' --prompt 'a cat'.
    """
    check_prompts(prompts)
    asked = hub.asked(name, "clip/")
    held = None if weights in (None, "random") else open_weights(str(weights))
    library = transformers(asked.source)
    with hub.told(asked):
        config = library.AutoConfig.from_pretrained(asked.place, **asked.where)
        if weights is None:
            net, notes = hub.pretrained(library.AutoModel, asked, partial)
        else:
            net = library.AutoModel.from_config(config, trust_remote_code=asked.code)
            notes = ("random initialisation: the net has learnt nothing",)
        tokenizer = library.AutoTokenizer.from_pretrained(asked.place, **asked.where)
    if held:
        notes = (*held.notes, *fit(net, held.state, partial))
    how = preprocess(library, asked, getattr(config, "vision_config", config))
    x = torch.randn(1, how.channels, *how.size, generator=torch.Generator().manual_seed(0))
    made = zero_shot(net.float(), {"pixel_values": x, **_tokens(tokenizer, config, prompts)})
    return Model(made, how, name=f"clip/{printable(name)}", labels=prompts, notes=(*notes, *said(made)))


def _tokens(tokenizer: Any, config: Any, prompts: Sequence[str]) -> Mapping[str, Tensor]:
    """The prompts as the model takes them, padded to the full length: one that was trained so pools the last place."""
    text = getattr(config, "text_config", config)
    length = min(tokenizer.model_max_length, getattr(text, "max_position_embeddings", 512))
    long = next((p for p in prompts if len(tokenizer(p).input_ids) > length), None)
    if long is not None:
        raise too_long(long, length)
    return dict(tokenizer(list(prompts), padding="max_length", max_length=length, return_tensors="pt"))
