"""A model with a tower for pictures and one for texts, as a classifier: its classes are the texts."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from camlucida.core.scope import untouched
from camlucida.errors import ModelError
from camlucida.files import printable

Given = Mapping[str, Any] | Sequence[Any]
"""What a two-tower model is called with: its keyword arguments, or the picture and the texts."""


@final
class ZeroShot(nn.Module):
    """From pictures ``b c h w`` to a score for each of ``k`` texts: ``scale · cos(picture, text_k) + bias``.

    The texts are embedded once. `zero_shot` makes one, and proves that its scores are the model's own.
    """

    texts: Float[Tensor, "k d"]
    scale: Tensor
    bias: Tensor

    def __init__(self, model: nn.Module, texts: Float[Tensor, "k d"]) -> None:
        super().__init__()
        self.model = model
        scale, bias = _scale(model)
        self.register_buffer("texts", nn.functional.normalize(texts, dim=1))
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("bias", bias.detach().clone())

    def forward(self, pictures: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """The score of each text for each picture."""
        found = nn.functional.normalize(_pictures(self.model, pictures), dim=1)
        return found @ self.texts.T * self.scale + self.bias


def zero_shot(model: nn.Module, given: Given) -> ZeroShot:
    """A CLIP-like model as a classifier of pictures whose classes are the texts it is ``given``, embedded once.

    ``logits = scale · cos(picture, text_k) + bias``, with the model's own scale and bias. ``given`` is what the model
    is called with: a mapping of keywords (``pixel_values``, ``input_ids``, …) for models of transformers, or ``(image,
    texts)`` for open_clip and CLIP itself. The picture among them serves to prove that the scores are the model's own.

    Raises: ModelError where the model has no two towers, or scores texts in another way.

    >>> class Tiny(nn.Module):
    ...     logit_scale = torch.zeros(1)
    ...     def encode_image(self, x): return x.mean((2, 3))
    ...     def encode_text(self, t): return t.float()
    ...     def forward(self, x, t): return (torch.nn.functional.cosine_similarity(x.mean((2, 3))[:, None], t, dim=2),)
    >>> classifier = zero_shot(Tiny(), (torch.rand(1, 3, 4, 4), torch.tensor([[1, 0, 0], [1, 1, 1]])))
    >>> classifier(torch.ones(2, 3, 4, 4)).shape
    torch.Size([2, 2])
    """
    picture = _picture(given)
    with untouched(model, picture.device):
        try:
            made = ZeroShot(model, _texts(model, given)).eval()
            found, own = made(picture).float(), _own(model, given).float()
        except ModelError:
            raise
        except Exception as fault:  # any code of any model
            reason = " ".join(str(fault).split())[:200]
            raise ModelError(
                f"this {type(model).__name__} could not be read as a tower for pictures and one for texts "
                f"({type(fault).__name__}: {reason})."
            ) from fault
    slack = torch.finfo(picture.dtype).eps ** 0.5 * float(own.abs().max())
    if found.shape != own.shape or not torch.allclose(found, own, rtol=0, atol=slack):
        raise ModelError(
            f"this {type(model).__name__} scores texts in another way than scale · cosine + bias, so its texts cannot "
            "be embedded once for all pictures: explain the model itself, called with pictures and texts."
        )
    return made


def check_prompts(prompts: Sequence[str]) -> None:
    """Raises: ModelError where there are none, or one of them twice."""
    if not prompts:
        raise ModelError(
            "the classes of a model with a tower for texts are texts: say "
            "load(…, prompts=['a photo of a dog', 'a photo of a cat']), or --prompt 'a dog' --prompt 'a cat'."
        )
    if twice := [p for p in prompts if prompts.count(p) > 1]:
        raise ModelError(f"the prompt '{printable(twice[0][:80])}' is given twice: its classes would be one.")


def too_long(prompt: str, length: int) -> ModelError:
    """What to say of a prompt that the model would read a part of only."""
    return ModelError(f"the prompt '{printable(prompt[:60])}…' is longer than the {length} tokens that are read.")


def said(made: ZeroShot) -> tuple[str, ...]:
    """What one should know of the probabilities."""
    if not bool(made.bias):
        return ()
    return ("trained on each prompt by itself (a sigmoid): probabilities are among the prompts, unless by cl.labels",)


def _picture(given: Given) -> Tensor:
    held = list(given.values()) if isinstance(given, Mapping) else list(given)
    found = [v for v in held if isinstance(v, Tensor) and v.is_floating_point() and v.dim() == 4]
    if len(found) == 1:
        return found[0]
    raise ModelError(
        "zero_shot takes what the model is called with, one picture batch (b, c, h, w) among it: "
        "{'pixel_values': x, 'input_ids': ids, …}, or (image, texts)."
    )


# ------------------------------------------------------------------------------------------------------ the two towers


def _transformers(model: nn.Module) -> bool:
    """Whether the towers go by the names that transformers gives them; else by those of CLIP's authors."""
    if hasattr(model, "get_image_features") and hasattr(model, "get_text_features"):
        return True
    if hasattr(model, "encode_image") and hasattr(model, "encode_text"):
        return False
    raise ModelError(
        f"a {type(model).__name__} has no tower for pictures beside one for texts: neither get_image_features and "
        "get_text_features nor encode_image and encode_text are among its methods."
    )


def _pictures(model: Any, pictures: Tensor) -> Float[Tensor, "b d"]:
    return _vector(
        model.get_image_features(pixel_values=pictures) if _transformers(model) else model.encode_image(pictures)
    )


def _texts(model: Any, given: Given) -> Float[Tensor, "k d"]:
    if not _transformers(model):
        _, texts = given.values() if isinstance(given, Mapping) else given
        return _vector(model.encode_text(texts))
    assert isinstance(given, Mapping), "models of transformers take keywords"
    takes = inspect.signature(model.get_text_features).parameters
    return _vector(model.get_text_features(**{k: v for k, v in given.items() if k in takes}))


def _own(model: Any, given: Given) -> Float[Tensor, "b k"]:
    """The scores as the model itself gives them."""
    found: Tensor
    if isinstance(given, Mapping) and _transformers(model):
        found = model(**given).logits_per_image
    else:
        found = getattr(model, "get_logits", model)(*(given.values() if isinstance(given, Mapping) else given))[0]
    return found


def _vector(made: Any) -> Float[Tensor, "n d"]:
    found = made if isinstance(made, Tensor) else made.pooler_output
    assert isinstance(found, Tensor) and found.dim() == 2, "an embedding is one vector"
    return found


def _scale(model: Any) -> tuple[Tensor, Tensor]:
    """What the cosine is multiplied by, and what is added: kept as a logarithm, or as a temperature."""
    scale: Tensor = (model.logit_scale.exp() if hasattr(model, "logit_scale") else 1 / model.temperature).reshape(())
    bias = getattr(model, "logit_bias", None)
    return scale, torch.zeros_like(scale) if bias is None else bias.reshape(())
