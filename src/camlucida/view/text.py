"""Words on pictures: Pillow's own typeface, so that a picture is the same on every machine."""

from functools import lru_cache
from unicodedata import category, normalize

from PIL import ImageDraw, ImageFont, features

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

INK = (38, 38, 38)
_LONGEST = 2000  # no line is wider than this many characters; keeps the work on a hostile name small
_PLAIN = str.maketrans({"–": "-", "—": "-", "−": "-", "×": "x", "→": "->", "‘": "'", "’": "'", "“": '"', "”": '"'})


@lru_cache(maxsize=32)
def font(size: int) -> Font:
    """The built-in typeface, `size` pixels high; the fixed bitmap one where Pillow was built without FreeType."""
    return ImageFont.load_default(size if features.check("freetype2") else None)


@lru_cache(maxsize=4096)
def _drawable(char: str) -> bool:
    face = font(16)
    if not isinstance(face, ImageFont.FreeTypeFont):
        return char.isascii()
    return char.isspace() or bytes(face.getmask(char)) != bytes(face.getmask("\uffff"))


def clean(text: str) -> str:
    """`text` on one line, in characters that the typeface has as far as there is a likeness.

    >>> clean("caffè\\n0.87 – conv1 → conv2")
    'caffe 0.87 - conv1 -> conv2'
    """
    text = " ".join(text[:_LONGEST].split())
    return "".join(_likeness(char) for char in text if category(char) not in ("Cc", "Cf", "Mn"))


def _likeness(char: str) -> str:
    if category(char) == "Cs":
        return "?"  # half of a surrogate pair, which no font engine takes
    if _drawable(char):
        return char
    plain = char.translate(_PLAIN)
    ascii_part = normalize("NFKD", plain).encode("ascii", "ignore").decode()
    return ascii_part or (char if isinstance(font(16), ImageFont.FreeTypeFont) else "?")


def cut(text: str, face: Font, width: int) -> str:
    """The longest beginning of `text` that is at most `width` pixels wide, with an ellipsis where some is missing.

    >>> cut("a name that goes on and on", font(14), 80)
    'a name tha…'
    """
    text = clean(text)
    if not text or face.getlength(text) <= width:
        return text
    dots = "…" if _drawable("…") else "..."
    fits, over = 0, len(text)
    while over - fits > 1:
        half = (fits + over) // 2
        fits, over = (half, over) if face.getlength(text[:half].rstrip() + dots) <= width else (fits, half)
    return text[:fits].rstrip() + dots


def wrap(text: str, face: Font, width: int, lines: int) -> list[str]:
    """`text` broken between words into at most `lines` lines of `width` pixels, the last cut with an ellipsis.

    >>> wrap("no positive evidence", font(14), 90, 3)
    ['no positive', 'evidence']
    """
    words, done = clean(text).split(" "), list[str]()
    while words and len(done) < lines - 1:
        count = len(words)
        while count > 1 and face.getlength(" ".join(words[:count])) > width:
            count -= 1
        done.append(cut(" ".join(words[:count]), face, width))
        words = words[count:]
    return [*done, cut(" ".join(words), face, width)] if words else done


def height(face: Font) -> int:
    """How many pixels a line of text takes."""
    return int(face.getbbox("Ajgq|")[3]) + 1


def write(draw: ImageDraw.ImageDraw, box: tuple[int, int, int], text: str, face: Font, align: float = 0.0) -> None:
    """Write `text` in the line ``(left, top, width)``, cut to fit; `align` 0 is left, 0.5 centred, 1 right."""
    left, top, width = box
    text = cut(text, face, width)
    draw.text((left + align * (width - face.getlength(text)), top), text, fill=INK, font=face)
