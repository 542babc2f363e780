"""The network: architecture, weights, training, inference; the only users of torch."""

from galsep.model.compiler import import_torchvision

# Before any module of the package imports it.
import_torchvision()
