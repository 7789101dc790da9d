"""Training: settings, the DeepSpeed engine, the loop, checkpoints and logs."""
