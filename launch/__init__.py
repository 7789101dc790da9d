"""Starting runs: `torchrun` on one box."""
