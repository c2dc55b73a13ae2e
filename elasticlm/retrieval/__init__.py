"""Retrieval: data specs, the passage index, metrics (extra ``retrieval``).

data_specs.py     load_retrieval, load_corpus, load_queries, load_texts: the loaders for all data specs
columns.py        columns of texts that stay in files until they are read
corpus.py         Corpus and RetrievalData, the types that the loaders return
beir.py           beir:DIR
text_file.py      text:FILE, and data made from any list of paragraphs
dpr.py            dpr:DIR, the files of Dense Passage Retrieval
msmarco_docs.py   msmarco-docs:DIR, the official files of MS MARCO's document ranking
hub_dataset.py    hf:NAME[/CONFIG]
split_names.py    which split dev and validation are, in sets that name them differently
docstrings.py     pydoc, the built-in default
passage_index.py  PassageIndex over FAISS; needs only faiss and numpy, so that a server can import it
passage_ids.py    PassageIds, the ids of an index's passages
index_folder.py   the files of an index folder and of its shards
faiss_files.py    FAISS indexes made, written and read
faiss_shards.py   FaissShards, several FAISS indexes searched as one
passage_texts.py  PassageTexts, the texts of an index's passages in memory-mapped files
answers.py        Success@k by DPR's answer matching
measures.py       RR@k, nDCG@10, R@k and AP by ir_measures; retention and differences, paired over queries
"""
