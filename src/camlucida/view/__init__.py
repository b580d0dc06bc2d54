"""Heat maps made visible: colours, overlays, panels, montages, and cards for notebooks; numpy and Pillow only."""

from camlucida.view.colour import names, paint, scale, table
from camlucida.view.embed import card, data_url, png_bytes
from camlucida.view.montage import Foot, class_map_sheet, montage
from camlucida.view.overlay import heatmap, overlay
from camlucida.view.panel import PAPER, Words, panel

__all__ = [
    "PAPER",
    "Foot",
    "Words",
    "card",
    "class_map_sheet",
    "data_url",
    "heatmap",
    "montage",
    "names",
    "overlay",
    "paint",
    "panel",
    "png_bytes",
    "scale",
    "table",
]
