"""`python -m tokenreward.cli`: the same as the `tokenreward` command."""

import sys

from tokenreward.cli import main

if __name__ == "__main__":
    sys.exit(main())
