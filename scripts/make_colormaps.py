"""Write ``src/camlucida/view/colormaps.png`` from matplotlib: one row of 256 pixels for each of ``colour.NAMES``.

Run it after changing `NAMES`; needs the extra ``figures``. The tables then ship with the package, so that colouring
a picture needs no matplotlib.
"""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from camlucida.view import colour

TARGET = Path(colour.__file__).with_name(colour.TABLES)


def row(name: str) -> np.ndarray:
    """The 256 colours of matplotlib's map `name`, uint8 ``(256, 3)``."""
    rgba = matplotlib.colormaps[name](np.arange(256), bytes=True)
    return np.asarray(rgba[:, :3], dtype=np.uint8)


def main() -> None:
    """Write the tables."""
    Image.fromarray(np.stack([row(name) for name in colour.NAMES])).save(TARGET, optimize=True)


if __name__ == "__main__":
    main()
