"""The results of a run: its record and metrics, its folder, its pictures, and wandb.

Start with `record.RunRecord`, everything that is known of a finished run. `folder.Folder` has the
files of a run, `metrics` the accuracy matrix with ACC, BWT and so on, `source_code` identifies the
code that made a result, and `page.Page` writes page.md, table.csv and figure.png of a study or of a
sweep.
"""
