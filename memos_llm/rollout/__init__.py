"""The migration as a whole: what was called and who answered (`recorder`), and what that means (`inventory`).

`inventory` is pure; `recorder` is the driver that counts requests and writes the counts to the store.
"""
