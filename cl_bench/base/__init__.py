"""What every other room may use: exceptions, bounds of options, files on disk, text from elsewhere.

Nothing here knows of continual learning, and nothing here imports from another room. `files` is the
only place that writes a file whole or not at all, and that locks one.
"""
