"""The package's version: here, at the bottom, so that any layer may say it."""

VERSION = "0.1.0"
