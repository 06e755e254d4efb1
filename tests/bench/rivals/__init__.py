"""The honest best of each kind, written as its users would."""
