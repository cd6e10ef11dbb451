"""What `connector` does, typed in a checkout: python train.py [OPTIONS]. The body is connector/launch/command_line.py."""

# Hydra's tab completion looks for the word @hydra.main in a script.
from connector import early

if __name__ == "__main__":
    early.install()

import sys

from connector.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
