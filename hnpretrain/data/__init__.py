"""From shards to batches: the plan, the streams that read it, decoding and collation."""
