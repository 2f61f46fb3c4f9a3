"""FastAPI in front of the engine: the only place with HTTP and text."""
