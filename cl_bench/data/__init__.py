"""From files on disk to a stream of tasks.

A loader (`source`, `composed`) returns a `Source`, the arrays of a data set. It reads them from a
prepared file (`cache`, `prepared`), or from the published files (`layouts`, `origin`, `listing`,
`readers`, `pickles`, `decode`). `stream` cuts a source into tasks (`plan`, `split`, `scenario`,
`orders`), and `augment` turns pixels into a network's input. `published` holds what is known of a
data set before it is read, with which `check` refuses options that do not fit it. Start with
`stream`.
"""
