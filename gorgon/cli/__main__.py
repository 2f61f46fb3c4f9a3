"""``python -m gorgon.cli``: the same as ``gorgon``."""

from gorgon.cli.app import main

if __name__ == "__main__":
    main()
