"""Many maps made one: over layers, over noise, over flips and sizes. Each gives an `Explanation`, as `explain` does.

What is explained is settled first, on the picture as it is: its class, and a contrast's rivals, stay those of the
undisturbed picture in every view of it. The facts and steps of the result say what was combined.
"""

from camlucida.combine.crops import sess as sess
from camlucida.combine.layers import FUSIONS as FUSIONS
from camlucida.combine.layers import fuse as fuse
from camlucida.combine.layers import over_layers as over_layers
from camlucida.combine.tiles import tiled as tiled
from camlucida.combine.views import augmented as augmented
from camlucida.combine.views import smooth as smooth
