"""One file a method. Start with `base.Method`, its four hooks, and `er` or `ewc`.

`shared/` has what two or more methods use. A method imports from core and curvature, never from
another method.
"""
