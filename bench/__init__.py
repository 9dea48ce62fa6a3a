"""What Packtrain's speed claims come from: `make bench`. docs/performance.md shows what it measured."""
