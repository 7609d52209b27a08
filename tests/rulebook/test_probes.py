"""Checks the rules that the model is probed on."""

from rdjax.rulebook.probes import probe_documents


def test_probed_rules_are_never_the_papers():
    texts = [document.prefix for group in probe_documents(0).values() for document in group]
    assert texts
    assert not any("@@@" in text or "a + b + 1." in text for text in texts)
