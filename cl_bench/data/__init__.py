"""From files on disk to a stream of tasks."""
