"""What is fast, measured against its peers in one process: ``python -m benchmarks.<name>``."""
