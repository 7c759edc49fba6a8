"""Parts of methods: low-rank factors, the capacity of growing methods, proximal steps."""
