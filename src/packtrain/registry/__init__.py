"""Where registered models are kept: the ledger in the store itself, with nothing to run."""
