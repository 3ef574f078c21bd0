"""`python -m tiflow` is `tiflow`."""

import sys

from tiflow.cli.main import main

sys.exit(main())
