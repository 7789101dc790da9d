"""The page on which people look at candidates, and decide.

`serve` answers a browser on this machine: `guard` says which requests are heard, `shelf` finds what
there is to look at, `pictures` gives its images, `desk` takes the decisions.
"""
