"""The network: architecture, weights, training, inference."""
