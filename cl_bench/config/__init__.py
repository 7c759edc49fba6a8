"""A config before a run: composed, checked, named, and turned into objects.

`check.check_config` says whether a config is right (`schema`: keys, types and bounds; `interfaces`,
`combinations`, `size`, `optimizer_trial`: what does not go together), `name.config_hash` names it,
`build` makes objects of its nodes, `compose` composes one without a command line, `errors` puts
Hydra's and OmegaConf's errors into one line.
"""
