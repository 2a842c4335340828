"""Scoring: what each trajectory of a batch is worth, and how that came about.

``port`` says what a scorer is; ``rewards`` and ``heuristic`` score by what was recorded, ``ruler`` has an LLM judge
compare a group. ``batch`` reads a batch, gives each group to the scorer that the settings name, and writes down the
result. The worker is handed scores by trajectory id: it knows neither judges nor their prices.
"""
