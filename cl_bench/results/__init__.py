"""What a run leaves in its folder: the record with its metrics, rows, pictures, wandb's mirror.

`record.RunRecord` is everything that one run proves, `folder.Folder` the files of a run, `metrics`
the accuracy matrix and what is computed from it, `source_code` which code made a result, and
`page.Page` the page.md, table.csv and figure.png of a study or a sweep.
"""
