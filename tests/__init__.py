"""Why to trust it: tests, and benchmarks beside them (`python -m tests.bench`)."""
