"""The shard format: sample schema, tar members, marker, index and storage. Imports no torch."""
