"""What happened, made visible: listeners on the event bus. Metrics and log lines are written here and nowhere else.

A listener returns at once and holds no prompt, completion, key or header value: ids, names and numbers only.
"""
