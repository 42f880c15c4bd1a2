"""Measurements of this build, each beside a named floor taken in the same run. `make bench` runs them all."""
