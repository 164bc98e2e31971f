"""From tables of runs to claims: metrics, sparsity curves, essential sparsity with its interval; never torch."""
