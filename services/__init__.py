"""The services that are deployed: optimizer, generator and scorer, and the bundled demo."""
