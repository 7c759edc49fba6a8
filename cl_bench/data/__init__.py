"""From files on disk to a stream of tasks.

A loader (`source`, `composed`) gives a `Source`, the arrays of a data set, from its prepared file
(`cache`, `prepared`) or from its published files (`layouts`, `origin`, `listing`, `readers`,
`pickles`, `decode`). `stream` cuts it into tasks (`plan`, `split`, `scenario`, `orders`).
`published` says what is known of a data set before it is read, and `check` refuses by it what the
data set does not have.
"""
