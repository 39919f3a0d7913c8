"""The plan of the house, counted: `python -m tests.house` prints each figure before the plan, now, and its aim."""
