"""The commands, a module for each part of the job. Each asks the `Client` and prints the result."""
