"""Speed, each part against its peer in one run: `python -m benchmarks.<name>`."""
