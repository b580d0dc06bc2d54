"""The card in a file of weights, and what of it is told."""

import math
from pathlib import Path

from camlucida.files import printable
from camlucida.gap.card import Card, read_card
from camlucida.models import sniff


def card_in(file: Path) -> Card | None:
    """The card of a file of weights; None where it has none, as a PyTorch file never has. Raises: ModelError."""
    return read_card(file) if sniff.kind(file) == "safetensors" else None


def told(card: Card) -> tuple[str, ...]:
    """What a card says that one should know, as notes of a model."""
    top1, on = card.accuracy.get("top1"), card.accuracy.get("on", "pictures held out")
    right = [f"right on {100 * top1:.1f} % of {on}"] if isinstance(top1, int | float) and math.isfinite(top1) else []
    owned = [f"{name}: {text}" for name, text in (("origin", card.origin), ("licence", card.licence)) if text]
    return tuple(printable(" ".join(text.split())) for text in (*right, *owned, *card.notes))
