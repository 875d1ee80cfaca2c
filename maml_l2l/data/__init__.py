"""Labelled images: where they come from, how their classes are split."""
