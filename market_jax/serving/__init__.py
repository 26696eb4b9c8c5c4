"""A page and an HTTP interface for one network and one gallery; needs FastAPI."""
