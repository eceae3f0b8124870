"""Results to text, HTML and JSON, and nothing else."""
