"""A config before a run: composed, checked, named by a hash, and turned into objects.

Start with `check.check_config`, which refuses a wrong config: `schema` checks keys, types and
bounds, `interfaces` what a class can do, `combinations`, `size` and `optimizer_trial` what does not
go together. `name.config_hash` names a config, `build` makes the objects of a run from it,
`compose` composes one from overrides, and `errors` explains an error in one line.
"""
