"""The ledger: the reward entries that outcomes gave, a function of the stored outcomes and the stored steps."""
