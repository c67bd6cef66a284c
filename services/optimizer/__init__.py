"""The optimizer: jobs over REST, their runner, and the search."""
