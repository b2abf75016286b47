"""The inference service: runs models on the CPU, and nothing else."""
