"""Finding the settings under which a model runs fastest on this machine."""
