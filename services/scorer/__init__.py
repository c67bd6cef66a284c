"""The scorer pool: instructions tried on examples against a target model, within its limits."""
