"""Judges decisions by their first word."""


def same_decision(response, row):
    """Tells whether a response begins with the decision of the row's output, "Valid" or "Void"."""
    return response.strip().split(".")[0] == row["output"].split(".")[0]
