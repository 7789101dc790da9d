"""Speed, memory and exactness of the parts, beside what else one would use."""
