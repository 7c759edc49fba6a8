"""What every other room may use: exceptions, bounds of options, files, escaped text, signals.

Nothing here is specific to continual learning, and nothing here imports from another room. `files`
is the only module that replaces files atomically and locks them. Start with `exceptions`.
"""
