"""Retrieval: data specs, the passage index, metrics (extra ``retrieval``).

data.py      load_retrieval, load_corpus, load_queries, load_texts: one door for every data spec
corpus.py    Corpus and RetrievalData, what the specs give
beir.py      beir:DIR
text.py      text:FILE, and what becomes of any list of paragraphs
hub.py       hf:NAME[/CONFIG]
pydoc.py     pydoc, the embedded default
index.py     PassageIndex over FAISS; needs faiss and numpy only, so that a server can import it
passages.py  PassageTexts, the texts of an index's passages in memory-mapped files
pipeline.py  how long a retriever and a reranker behind it take, over one index
metrics.py   RR@10, nDCG@10, R@k, AP by ir_measures; retention by the paired bootstrap
"""
