"""The whole path in one command, on the concept world."""
