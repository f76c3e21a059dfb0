"""`python -m dnsguard`, for where the script is not on the path."""

import sys

from dnsguard.cli import main

sys.exit(main())
