"""MTEB's two JSON forms."""

from __future__ import annotations

import json

import pytest

from sparsebench.errors import InputError
from sparsebench.retrieval import mteb
from sparsebench.retrieval.collection import Collection
from sparsebench.retrieval.evaluate import evaluate
from sparsebench.retrieval.run import Run

COLLECTION = Collection.from_dicts("toy", {"a": "x", "b": "y"}, {"q": "x"}, {"q": {"a": 1}}, split="dev")
RUN = Run.from_dict({"q": {"b": 2.0, "a": 1.5}})


def test_predictions_hold_scores_by_subset_split_query_and_document() -> None:
    written = json.loads(json.dumps(mteb.predictions(RUN, "dev", "org/model", "abc")))
    assert written["default"] == {"dev": {"q": {"b": 2.0, "a": 1.5}}}
    assert written["mteb_model_meta"] == {"model_name": "org/model", "revision": "abc"}


def test_a_result_names_metrics_as_mteb_does_and_pins_the_data() -> None:
    written = json.loads(json.dumps(mteb.result(COLLECTION, evaluate(COLLECTION, RUN), seconds=1.5)))
    (scores,) = written["scores"]["dev"]
    assert scores["mrr_at_10"] == 0.5
    assert scores["main_score"] == scores["ndcg_at_10"] == pytest.approx(0.6309297535714575)
    assert {"recall_at_100", "map_at_100", "precision_at_10", "hf_subset", "languages"} <= set(scores)
    assert written["dataset_revision"] == COLLECTION.content_hash
    assert written["evaluation_time"] == 1.5


def test_a_metric_that_mteb_does_not_have_is_an_error() -> None:
    with pytest.raises(InputError, match="MAP"):
        mteb.result(COLLECTION, evaluate(COLLECTION, RUN, ["nDCG@10", "MAP"]))
    with pytest.raises(InputError, match="main metric"):
        mteb.result(COLLECTION, evaluate(COLLECTION, RUN, ["P@10"]))
