"""What two or more methods use: low-rank factors, capacity of growing methods, proximal steps."""
