"""Starting runs: `torchrun` on one box; trainings and arrays of shard jobs on a Slurm cluster."""
