"""From the contract to the domain and back, and nothing else."""
