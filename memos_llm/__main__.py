"""`python -m memos_llm` is `llmctl`."""

import sys

from memos_llm.cli import main

if __name__ == "__main__":
    sys.exit(main())
