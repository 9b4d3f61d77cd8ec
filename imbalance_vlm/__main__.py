"""`python -m imbalance_vlm` is the console script `imbalance-vlm`."""

from imbalance_vlm.cli import main

raise SystemExit(main())
