"""List the label sets of the supported corpora, as their readers have them."""

from __future__ import annotations

from selfemo.corpora.readers import emorynlp, iemocap, meld

MELD_LABELS, EMORYNLP_LABELS = meld.LABELS, emorynlp.LABELS
IEMOCAP4_LABELS, IEMOCAP6_LABELS = iemocap.label_set(iemocap.FOUR_WAY), iemocap.label_set(iemocap.SIX_WAY)
EVERY_CORPUS = (MELD_LABELS, EMORYNLP_LABELS, IEMOCAP4_LABELS, IEMOCAP6_LABELS)
