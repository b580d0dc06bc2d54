"""The card in a file of weights, and what of it is told."""

from pathlib import Path

from camlucida.files import printable
from camlucida.gap.card import Card, read_card
from camlucida.models import sniff

_LONGEST, _MOST = 1000, 20  # letters of a note, and notes, that a file of anyone's can put before a user


def card_in(file: Path) -> Card | None:
    """The card of a file of weights; None where it has none, as a PyTorch file never has. Raises: ModelError."""
    return read_card(file) if sniff.kind(file) == "safetensors" else None


def told(card: Card) -> tuple[str, ...]:
    """What a card says that one should know, as notes of a model."""
    top1, on = card.accuracy.get("top1"), card.accuracy.get("on", "pictures held out")
    share = top1 if isinstance(top1, int | float) and not isinstance(top1, bool) and 0 <= top1 <= 1 else None
    right = [] if share is None else [f"right on {100 * share:.1f} % of {on}"]
    owned = [f"{name}: {text}" for name, text in (("origin", card.origin), ("licence", card.licence)) if text]
    notes = [printable(" ".join(text[:_LONGEST].split())) for text in (*right, *owned, *card.notes[:_MOST])]
    return tuple(notes)
