"""The core: from a model and a tensor to the evidence that one forward pass leaves."""
