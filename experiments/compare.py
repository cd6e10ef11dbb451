"""What `connector compare` does, typed in a checkout: python experiments/compare.py DIR..."""

from connector import early

if __name__ == "__main__":
    early.install()

import sys

from connector.__main__ import main

if __name__ == "__main__":
    sys.argv.insert(1, "compare")
    sys.exit(main())
