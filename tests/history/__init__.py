"""What was written, what was seen, and what that says about the promises in between.

`history` keeps the account and judges it; `records` carries it between processes. Nothing here knows a database or a
broker, so its own tests plant every fault it must find.
"""
