"""Making heads for a model: calibration and the heads file."""
