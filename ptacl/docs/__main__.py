"""The documentation site as a command: `python -m ptacl.docs`."""

import sys

from ptacl.docs.site import docs_command

if __name__ == "__main__":
    sys.exit(docs_command())
