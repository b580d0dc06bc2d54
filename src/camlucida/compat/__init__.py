"""The interface of the first widely used PyTorch Grad-CAM, kept alive over the new core.

Called as ever; `docs/how-to/come-from-the-original.md` says what differs on purpose.
"""

from camlucida.compat.gradcam import GradCAM, GradCAMpp
from camlucida.compat.layers import find_layer
from camlucida.compat.visualize import Normalize, visualize_cam

# One function under the five old names: nothing in it depends on the family.
find_vgg_layer = find_alexnet_layer = find_resnet_layer = find_densenet_layer = find_squeezenet_layer = find_layer

__all__ = [
    "GradCAM", "GradCAMpp", "Normalize", "find_alexnet_layer", "find_densenet_layer", "find_resnet_layer",
    "find_squeezenet_layer", "find_vgg_layer", "visualize_cam",
]  # fmt: skip
