"""`python -m tests.hostile`: see fuzz.py."""

from tests.hostile.fuzz import main

raise SystemExit(main())
