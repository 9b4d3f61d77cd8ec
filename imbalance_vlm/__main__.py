"""`python -m imbalance_vlm` is the console script `imbalance-vlm`."""

from imbalance_vlm.cli.main import main

raise SystemExit(main())
