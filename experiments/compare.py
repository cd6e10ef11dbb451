"""What `connector compare` does, typed in a checkout: python experiments/compare.py DIR..."""

import sys

from connector.compare import main

if __name__ == "__main__":
    sys.exit(main())
