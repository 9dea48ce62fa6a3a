"""What tests and demos need in place of the large and the far away: fakes, faults and tiny real models."""
