"""``python -m gorgon.cli``: the same as ``gorgon``."""

from gorgon.cli import main

if __name__ == "__main__":
    main()
