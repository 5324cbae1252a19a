"""Fast implementations of the boosted loss: ``cpu`` in PyTorch, ``gpu`` in Triton."""
