"""A new architecture: the distribution that ``kvmarch new-arch`` writes."""
