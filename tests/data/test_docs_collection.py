import math
import re

import pytest

from sparsebench.data.embedded.docs_collection import collection, masked_parts, rows
from sparsebench.data.embedded.docstrings import Docstring


def test_the_form_of_the_collection():
    made = collection()
    assert 500 <= len(made.corpus) <= 800
    assert 200 <= len(made.queries) <= 500
    assert set(made.queries) == set(made.qrels)
    for query, relevant in made.qrels.items():
        assert relevant == {query.removeprefix("q/"): 1}
        assert set(relevant) <= set(made.corpus)
    for document in made.corpus.values():
        assert set(document) == {"title", "text"}
        assert document["title"] == ""
        assert 40 <= len(document["text"].split()) <= 150
    assert len(set(made.queries.values())) == len(made.queries)
    assert list(made.corpus) == sorted(made.corpus)


def test_no_name_gives_the_answer_away():
    for row in rows():
        own = row["id"].rpartition(".")[2]
        if not re.fullmatch("[a-z]+", own):
            for text in (row["text"], row["query"] or ""):
                assert not re.search(rf"(?<!\w){re.escape(own)}(?!\w)", text), row["id"]


def test_a_docstring_is_cut_into_query_and_document():
    words = " ".join(f"word{number}" for number in range(200))
    text = f"Does it with do_it(x).  Then more.\n\nCalls do_it. {words}\n>>> do_it()"
    entry = Docstring("m.do_it", "m", "function", text)
    query, text = masked_parts(entry)
    assert query == "Does it with it."
    assert text == "Then more. Calls it."
    entry = Docstring("m.run", "m", "function", "Do a run of things.\n\nThe run() of run is a run.")
    assert masked_parts(entry) == ("Do a run of things.", "The it of run is a run.")


def test_bm25_finds_many_and_not_all():
    bm25s = pytest.importorskip("bm25s")
    import Stemmer

    made = collection()
    stemmer = Stemmer.Stemmer("english")

    def tokens(texts):
        return bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False)

    index = bm25s.BM25()
    index.index(tokens([document["text"] for document in made.corpus.values()]), show_progress=False)
    found, _ = index.retrieve(tokens(list(made.queries.values())), k=10, show_progress=False)
    names = list(made.corpus)
    gains = []
    for query, ranking in zip(made.queries, found, strict=True):
        ranks = [rank for rank, place in enumerate(ranking, start=1) if made.qrels[query].get(names[place])]
        gains.append(1 / math.log2(ranks[0] + 1) if ranks else 0.0)
    assert 0.5 < sum(gains) / len(gains) < 0.9
