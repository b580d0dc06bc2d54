"""Heat maps made visible: colours, overlays, panels, montages, and cards for notebooks; numpy and Pillow only."""

from camlucida.view.blobs import around
from camlucida.view.colour import names, paint, scale, table
from camlucida.view.embed import card, data_url, png_bytes
from camlucida.view.marks import boxes, contours, legend, outlines
from camlucida.view.montage import Foot, class_map_sheet, montage
from camlucida.view.overlay import heatmap, overlay
from camlucida.view.page import Text, page, tiled
from camlucida.view.panel import PAPER, Words, panel
from camlucida.view.sheet import Sheet, sheet
from camlucida.view.slices import Cut, Solid, picked, planes, slices
from camlucida.view.strip import strip

__all__ = [
    "PAPER",
    "Cut",
    "Foot",
    "Sheet",
    "Solid",
    "Text",
    "Words",
    "around",
    "boxes",
    "card",
    "class_map_sheet",
    "contours",
    "data_url",
    "heatmap",
    "legend",
    "montage",
    "names",
    "outlines",
    "overlay",
    "page",
    "paint",
    "panel",
    "picked",
    "planes",
    "png_bytes",
    "scale",
    "sheet",
    "slices",
    "strip",
    "table",
    "tiled",
]
