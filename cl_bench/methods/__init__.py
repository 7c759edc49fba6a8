"""The methods, one file each. Start with `base.Method` and its four hooks, then `er` or `ewc`.

`shared/` has the parts that two or more methods use. A method may import from core and curvature,
and not from another method.
"""
